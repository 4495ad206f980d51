//! An allocator that puts large blocks on huge pages (an unsafe fence: see `tests/house.rs`).
//!
//! Loading a 2 GB decoder touches half a million 4 KiB pages, each a trip into the kernel, and
//! every token walks them all again. Where the kernel gives huge pages on request
//! (`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise`), we ask for them. Programs that
//! link the library choose their own allocator; ours uses this one.
//!
//! It also knows a bound. A graph decides at run time how much memory the CPU engine asks for;
//! where that cannot be had, Rust's way is to abort, and where the kernel promises more than it
//! has, the machine is brought down. While a [`Hold`] is alive, blocks beyond the bound, and
//! blocks that the system refuses, end the process with a message and status 1 instead. (An
//! allocator can neither return an error that the engine would look at, nor unwind.)
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

/// Size of a huge page on x86-64 and on aarch64 with 4 KiB pages.
const HUGE: usize = 2 << 20;

/// Smaller blocks are left to the system's allocator as they are.
const LARGE: usize = 2 * HUGE;

/// Smaller blocks are not counted: they are many, and no tensor of consequence is among them.
const COUNTED: usize = 32 << 10;

/// Bytes in blocks of at least [`COUNTED`] bytes.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// What [`HELD`] may not exceed while a [`Hold`] is alive.
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Number of [`Hold`]s.
static HOLDS: AtomicUsize = AtomicUsize::new(0);

/// What the newest [`Hold`] is for, closed by a zero. Two at once may mix their letters.
static LABEL: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];

/// While it is alive, nobody in this process gets more memory than [`bound`] allows.
///
/// Without [`HugePages`] as the program's allocator it does nothing.
#[derive(Debug)]
pub struct Hold(PhantomData<()>);

impl Hold {
    /// Begins; `label` says in the message who asked for too much.
    pub fn new(label: &str) -> Self {
        let letters = label.bytes().take(LABEL.len() - 1).chain([0]);
        for (place, letter) in LABEL.iter().zip(letters) {
            place.store(letter, Relaxed);
        }
        HOLDS.fetch_add(1, Relaxed);
        Self(PhantomData)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HOLDS.fetch_sub(1, Relaxed);
    }
}

/// Sets the bound: `left` bytes beyond those that are held now.
pub fn bound(left: u64) {
    let left = usize::try_from(left).unwrap_or(usize::MAX);
    BOUND.store(HELD.load(Relaxed).saturating_add(left), Relaxed);
}

/// Returns to the system what was freed and is kept for later: another process is about to need it.
pub fn give_back() {
    // SAFETY: takes no address, and gives back only pages that no live block lies on.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Counts a block that is about to be asked for.
fn count(size: usize) {
    if size < COUNTED {
        return;
    }
    let held = HELD.fetch_add(size, Relaxed).saturating_add(size);
    if held > BOUND.load(Relaxed) && HOLDS.load(Relaxed) > 0 {
        refuse(size);
    }
}

/// Takes a block of `size` bytes out of the count.
fn discount(size: usize) {
    if size >= COUNTED {
        HELD.fetch_sub(size, Relaxed);
    }
}

/// Passes a block on; one that the system did not give is not held.
fn given(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        if HOLDS.load(Relaxed) > 0 {
            refuse(size);
        }
        discount(size);
    }
    block
}

/// Ends the process without another allocation.
#[cold]
fn refuse(size: usize) -> ! {
    struct Line([u8; 512], usize);
    impl Write for Line {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            for (place, &letter) in self.0[self.1..].iter_mut().zip(text.as_bytes()) {
                *place = letter;
                self.1 += 1;
            }
            Ok(())
        }
    }
    let mut label = [0u8; LABEL.len()];
    let letters = LABEL.iter().map(|letter| letter.load(Relaxed));
    let mut len = 0;
    for letter in letters.take_while(|&letter| letter != 0) {
        label[len] = letter;
        len += 1;
    }
    let label = label[..len]
        .utf8_chunks()
        .next()
        .map_or("", |chunk| chunk.valid());
    let mut line = Line([0; 512], 0);
    let _ = writeln!(
        line,
        "error: {label}: it asks for a block of {size} bytes, more than this machine has left"
    );
    // SAFETY: the buffer is live and has `line.1` bytes.
    unsafe { libc::write(libc::STDERR_FILENO, line.0.as_ptr().cast(), line.1) };
    // SAFETY: ends the process; handlers of `exit` may need locks that this thread holds, so that
    // none is run.
    unsafe { libc::_exit(1) }
}

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
        count(layout.size());
        let layout = served(layout);
        // SAFETY: the caller's promise that the size is not zero holds for `served`, too.
        let block = unsafe { System.alloc(layout) };
        advise(block, layout);
        given(block, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() < LARGE {
            count(layout.size());
            // SAFETY: as in `alloc`.
            return given(unsafe { System.alloc_zeroed(layout) }, layout.size());
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
        discount(layout.size());
        // SAFETY: `block` came from `alloc` with the same request, so from `System` with
        // `served(layout)`.
        unsafe { System.dealloc(block, served(layout)) }
    }

    /// Large blocks are copied to another place: nothing large grows here (tensors are made at
    /// their size, files are mapped), so that moving pages instead would pay nowhere.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.size().max(new_size) < LARGE {
            count(new_size);
            // SAFETY: both sizes are served as they are, and the caller promises the rest.
            let new = given(unsafe { System.realloc(block, layout, new_size) }, new_size);
            if !new.is_null() {
                discount(layout.size());
            }
            return new;
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

    static COUNTING: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn blocks_keep_their_contents_across_sizes() {
        let _one = COUNTING.lock().expect("lock");
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

    /// Tests do not run on this allocator, so that nobody else counts.
    #[test]
    fn count_follows_every_change_of_a_block() {
        let _one = COUNTING.lock().expect("lock");
        let layout = |size| Layout::from_size_align(size, 64).expect("layout");
        let before = HELD.load(Relaxed);
        let held = || HELD.load(Relaxed) - before;
        // SAFETY: as above.
        unsafe {
            let small = HugePages.alloc(layout(COUNTED - 1));
            assert_eq!(held(), 0);
            let mut size = COUNTED - 1;
            let mut block = small;
            for new_size in [COUNTED, LARGE, COUNTED + 1, LARGE + 1, 8] {
                block = HugePages.realloc(block, layout(size), new_size);
                size = new_size;
                assert_eq!(held(), if size < COUNTED { 0 } else { size });
            }
            HugePages.dealloc(block, layout(size));
            for size in [COUNTED, LARGE] {
                let block = HugePages.alloc_zeroed(layout(size));
                assert_eq!(held(), size);
                HugePages.dealloc(block, layout(size));
            }
        }
        assert_eq!(held(), 0);
    }

    /// In a process of its own: tests beside this one hold, and would be bound.
    #[test]
    fn bound_without_a_hold_refuses_nothing() {
        const ALONE: &str = "TRTVLM_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "huge_pages::tests::bound_without_a_hold_refuses_nothing";
            let alone = std::process::Command::new(std::env::current_exe().expect("exe"))
                .args([name, "--exact"])
                .env(ALONE, "1")
                .output()
                .expect("run");
            let text = String::from_utf8_lossy(&alone.stdout);
            assert!(alone.status.success(), "{text}");
            assert!(text.contains("1 passed"), "{text}");
            return;
        }
        let layout = Layout::from_size_align(LARGE, 64).expect("layout");
        bound(0);
        // SAFETY: as above.
        unsafe {
            let block = HugePages.alloc(layout);
            assert!(!block.is_null());
            HugePages.dealloc(block, layout);
        }
        BOUND.store(usize::MAX, Relaxed);
    }
}
