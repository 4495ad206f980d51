//! `include/trtvlm.h` is what `src/capi` says; `TRTVLM_BLESS=1` writes it anew.

use std::path::Path;

/// The files that C sees something of, in the order of the header.
const SOURCES: [&str; 3] = ["status.rs", "types.rs", "entry.rs"];

#[test]
fn header_is_made_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("configuration");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join("src/capi").join(source));
    }
    let mut made = Vec::new();
    builder.generate().expect("a header").write(&mut made);
    let made = String::from_utf8(made).expect("text");
    let path = root.join("include/trtvlm.h");
    if std::env::var_os("TRTVLM_BLESS").is_some() {
        std::fs::write(&path, &made).expect("write");
    }
    let header = std::fs::read_to_string(&path).expect("include/trtvlm.h");
    assert!(
        header == made,
        "include/trtvlm.h is stale: TRTVLM_BLESS=1 cargo test --test header"
    );
}
