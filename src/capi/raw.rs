//! The addresses of a caller: the only places that follow them (an unsafe fence: see
//! `tests/house.rs`).
//!
//! What can be checked of an address is checked here (null, size, alignment); that it leads to as many live bytes
//! as its owner says is what every entry of the header asks of its caller.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::mem::{MaybeUninit, size_of};
use std::ptr;

use super::status::Failure;
use super::types::Versioned;

/// Largest struct that a caller of the future may have, in bytes.
const MOST: usize = 4096;

/// Longest text that is looked through for the zero behind it, in bytes.
pub(super) const TEXT_BYTES: usize = 1 << 20;

/// Reads a caller's struct. Fields that it has not are zero; those that we do not know have to be.
///
/// # Safety
/// `address` is null or leads to a `size_t` with the number of live bytes from there on. All fields of `T` are
/// integers, floats, addresses, or optional functions.
pub(super) unsafe fn read_struct<T: Versioned + Copy>(address: *const T) -> Result<T, Failure> {
    // SAFETY: null, or a size is there, as the caller promises.
    let size = unsafe { checked_size(address)? };
    let bytes = address.cast::<u8>();
    let own = size_of::<T>();
    // SAFETY: `size` bytes from `bytes` on are live, as the caller promises.
    let behind = unsafe { slice(bytes, size) };
    if behind.iter().skip(own).any(|&byte| byte != 0) {
        return Err(Failure::argument(
            T::NAME,
            "it has fields that this library does not know, and they are not zero",
        ));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: no more than `size` live bytes are read and no more than `own` written; the value is of
    // this function, so that they do not overlap. Every field is valid whatever its bytes, zeros included.
    unsafe {
        ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast::<u8>(), size.min(own));
        Ok(value.assume_init())
    }
}

/// Writes a struct that has its own size first into that of a caller, whose size stays; fields that it has not
/// are left out.
///
/// # Safety
/// As [`read_struct`], and the bytes may be written.
pub(super) unsafe fn write_struct<T: Versioned + Copy>(
    address: *mut T,
    value: &T,
) -> Result<(), Failure> {
    // SAFETY: null, or a size is there, as the caller promises.
    let size = unsafe { checked_size(address)? }.min(size_of::<T>());
    let skip = size_of::<usize>();
    let from = ptr::from_ref(value).cast::<u8>();
    // SAFETY: `skip <= size` (every struct has more than its size), both have `size` live bytes, the value is a
    // reference of ours and cannot overlap what a caller may write.
    unsafe {
        ptr::copy_nonoverlapping(from.add(skip), address.cast::<u8>().add(skip), size - skip);
    }
    Ok(())
}

/// The size that a caller's struct says it has.
///
/// # Safety
/// `address` is null or leads to a live `size_t`.
unsafe fn checked_size<T: Versioned>(address: *const T) -> Result<usize, Failure> {
    if address.is_null() {
        return Err(Failure::argument(T::NAME, "it is null"));
    }
    if !address.is_aligned() {
        return Err(Failure::argument(T::NAME, "its address is not aligned"));
    }
    // SAFETY: not null and aligned; a `size_t` is there, as the caller promises.
    let size = unsafe { address.cast::<usize>().read() };
    if size < T::LEAST || size > MOST {
        let reason = format!("its size says {size}, at least {} is needed", T::LEAST);
        return Err(Failure::argument(T::NAME, reason));
    }
    Ok(size)
}

/// Bytes of a caller.
///
/// # Safety
/// `address` leads to `length` live bytes that nobody changes during `'a`; it may be anything if `length` is 0.
unsafe fn slice<'a>(address: *const u8, length: usize) -> &'a [u8] {
    if length == 0 || address.is_null() {
        return &[];
    }
    // SAFETY: not null, and as the caller promises; `length` is at most `isize::MAX`, which all callers check.
    unsafe { std::slice::from_raw_parts(address, length) }
}

/// Bytes of a caller, which names them `name`.
///
/// # Safety
/// `address` is null or leads to `length` live bytes that nobody changes during `'a`.
pub(super) unsafe fn bytes<'a>(
    name: &str,
    address: *const c_void,
    length: usize,
) -> Result<&'a [u8], Failure> {
    if address.is_null() {
        return Err(Failure::argument(name, "it is null"));
    }
    let end = address.addr().checked_add(length);
    if isize::try_from(length).is_err() || end.is_none() {
        let reason = format!("{length} bytes are more than any memory");
        return Err(Failure::argument(name, reason));
    }
    // SAFETY: as promised by the caller; the length was checked above.
    Ok(unsafe { slice(address.cast(), length) })
}

/// Values of a caller, which names them `name`.
///
/// # Safety
/// `address` is null or leads to `n` live values that nobody changes during `'a`.
pub(super) unsafe fn values<'a, T: Copy>(
    name: &str,
    address: *const T,
    n: usize,
) -> Result<&'a [T], Failure> {
    if address.is_null() || !address.is_aligned() {
        return Err(Failure::argument(name, "it is null or not aligned"));
    }
    let bytes = n.checked_mul(size_of::<T>());
    let end = bytes.and_then(|bytes| address.addr().checked_add(bytes));
    if end.is_none() || bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(Failure::argument(
            name,
            format!("{n} are more than any memory"),
        ));
    }
    // SAFETY: not null, aligned, of a possible size, and live, as the caller promises.
    Ok(unsafe { std::slice::from_raw_parts(address, n) })
}

/// A text of a caller of `length` bytes; a zero ends it if that is `SIZE_MAX`.
///
/// # Safety
/// `address` is null or leads to that many live bytes, or to a zero, and nobody changes them during `'a`.
pub(super) unsafe fn text<'a>(
    name: &str,
    address: *const c_char,
    length: usize,
) -> Result<&'a str, Failure> {
    let bytes = if length == usize::MAX && !address.is_null() {
        // SAFETY: not null, and a zero ends it, as the caller promises.
        unsafe { CStr::from_ptr(address) }.to_bytes()
    } else {
        // SAFETY: as promised by the caller.
        unsafe { bytes(name, address.cast(), length)? }
    };
    if bytes.len() > TEXT_BYTES {
        let reason = format!("{} bytes, {TEXT_BYTES} are the most", bytes.len());
        return Err(Failure::argument(name, reason));
    }
    std::str::from_utf8(bytes).map_err(|e| {
        let reason = format!("not valid UTF-8 at byte {}", e.valid_up_to());
        Failure::argument(name, reason)
    })
}

/// A text that may be absent.
///
/// # Safety
/// As [`text`], with a zero at its end.
pub(super) unsafe fn optional_text<'a>(
    name: &str,
    address: *const c_char,
) -> Result<Option<&'a str>, Failure> {
    if address.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    unsafe { text(name, address, usize::MAX) }.map(Some)
}

/// Room of a caller for a text and a zero; none if there is no room.
///
/// # Safety
/// `address` is null or leads to `size` bytes that nobody else uses during `'a`.
pub(super) unsafe fn room<'a>(
    name: &str,
    address: *mut c_char,
    size: usize,
) -> Result<&'a mut [MaybeUninit<u8>], Failure> {
    if size == 0 {
        return Ok(&mut []);
    }
    if address.is_null() {
        return Err(Failure::argument(
            name,
            format!("{size} bytes at a null address"),
        ));
    }
    let end = address.addr().checked_add(size);
    if isize::try_from(size).is_err() || end.is_none() {
        let reason = format!("{size} bytes are more than any memory");
        return Err(Failure::argument(name, reason));
    }
    // SAFETY: not null, of a possible size, and the caller's to give, as it promises.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast(), size) })
}

/// Writes a value where a caller wants it.
///
/// # Safety
/// `address` is null or may be written.
pub(super) unsafe fn put<T>(name: &str, address: *mut T, value: T) -> Result<(), Failure> {
    if address.is_null() || !address.is_aligned() {
        return Err(Failure::argument(name, "it is null or not aligned"));
    }
    // SAFETY: not null, aligned, and the caller's to give, as it promises.
    unsafe { address.write(value) };
    Ok(())
}

/// A function of the caller's that sees the answer as it grows.
pub(super) struct OnText {
    function: unsafe extern "C-unwind" fn(*mut c_void, *const c_char, usize) -> u32,
    user: *mut c_void,
}

impl OnText {
    /// # Safety
    /// The function may be called with `user` and any text until the call that gave it returns.
    pub(super) unsafe fn new(function: super::types::OnText, user: *mut c_void) -> Option<Self> {
        function.map(|function| Self { function, user })
    }

    /// Shows a piece; true if the answer is to go on.
    pub(super) fn call(&self, piece: &str) -> bool {
        // SAFETY: the function is the caller's, who promised in `new` that it may be called; the text lives
        // until it returns.
        unsafe { (self.function)(self.user, piece.as_ptr().cast(), piece.len()) == 0 }
    }
}
