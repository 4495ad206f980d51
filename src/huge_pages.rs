//! An allocator that puts large blocks on huge pages (an unsafe fence: see `tests/house.rs`).
//!
//! Loading a 2 GB decoder touches half a million 4 KiB pages, each a trip into the kernel, and
//! every token walks them all again. Where the kernel gives huge pages on request
//! (`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise`), we ask for them. Programs that
//! link the library choose their own allocator; ours uses this one.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

/// Size of a huge page on x86-64 and on aarch64 with 4 KiB pages.
const HUGE: usize = 2 << 20;

/// Smaller blocks are left to the system's allocator as they are.
const LARGE: usize = 2 * HUGE;

/// The system's allocator, with huge pages asked for under blocks of 4 MiB and more.
#[derive(Debug, Clone, Copy, Default)]
pub struct HugePages;

/// The layout that a request is served with: large blocks begin at a huge page.
fn served(layout: Layout) -> Layout {
    if layout.size() < LARGE {
        return layout;
    }
    let align = layout.align().max(HUGE);
    Layout::from_size_align(layout.size(), align).unwrap_or(layout)
}

/// Asks for huge pages under the whole ones of a block; the rest of it stays on small pages, so
/// that no memory is taken beyond the block.
fn advise(block: *mut u8, layout: Layout) {
    if layout.align() < HUGE || block.is_null() {
        return;
    }
    let len = layout.size() / HUGE * HUGE;
    // SAFETY: `block` was just allocated with `layout`, which begins at a huge page and has at
    // least `len` bytes; the advice changes no contents. A kernel that refuses it is no worse.
    unsafe { libc::madvise(block.cast(), len, libc::MADV_HUGEPAGE) };
}

// SAFETY: every call goes to `System` with the layout of `served`, which depends on the request's
// layout only, so that a block is freed with the layout that it was allocated with. Size is never
// changed and alignment only raised.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let layout = served(layout);
        // SAFETY: the caller's promise that the size is not zero holds for `served`, too.
        let block = unsafe { System.alloc(layout) };
        advise(block, layout);
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() < LARGE {
            // SAFETY: as in `alloc`.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as in `alloc`; the block has `layout.size()` bytes. Zeroed after the advice,
        // because zeroing takes the pages.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from `alloc` with the same request, so from `System` with
        // `served(layout)`.
        unsafe { System.dealloc(block, served(layout)) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.size().max(new_size) < LARGE {
            // SAFETY: both sizes are served as they are, and the caller promises the rest.
            return unsafe { System.realloc(block, layout, new_size) };
        }
        // SAFETY: the caller promises that `new_size`, rounded up to `layout.align()`, does not
        // overflow.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: `new_size` is not zero (the caller's promise); old and new block do not overlap
        // and have at least the copied bytes; `block` was allocated with `layout`.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(block, new, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_contents_across_sizes() {
        let pattern = |i: usize| (i % 251) as u8;
        let (small, large) = (LARGE - 4096, LARGE + HUGE + 4096);
        let layout = Layout::from_size_align(small, 64).expect("layout");
        // SAFETY: sizes are not zero, each block is used within its size and freed once with the
        // layout that it has then.
        unsafe {
            let mut block = HugePages.alloc(layout);
            assert!(!block.is_null());
            for i in 0..small {
                *block.add(i) = pattern(i);
            }
            let mut size = small;
            for new_size in [large, large + HUGE, small, large] {
                let layout = Layout::from_size_align(size, 64).expect("layout");
                block = HugePages.realloc(block, layout, new_size);
                assert!(!block.is_null());
                assert!(new_size < LARGE || (block as usize).is_multiple_of(HUGE));
                assert!(
                    (0..small).all(|i| *block.add(i) == pattern(i)),
                    "{size} to {new_size}"
                );
                size = new_size;
            }
            HugePages.dealloc(block, Layout::from_size_align(size, 64).expect("layout"));

            let layout = Layout::from_size_align(large, 64).expect("layout");
            let zeroed = HugePages.alloc_zeroed(layout);
            assert!((0..large).all(|i| *zeroed.add(i) == 0));
            HugePages.dealloc(zeroed, layout);
        }
    }
}
