#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    trtvlm_fuzz::items(data);
});
