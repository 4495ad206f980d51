//! Which files may be a TensorRT.

use std::path::{Path, PathBuf};

use super::flavour::Flavour;
use crate::cuda::LibraryPath;

/// File names of a flavour: the inference library and the ONNX parser that goes with it.
const STEMS: [(Flavour, &str, Option<&str>); 3] = [
    (
        Flavour::Rtx,
        "libtensorrt_rtx.so",
        Some("libtensorrt_onnxparser_rtx.so"),
    ),
    (
        Flavour::Enterprise,
        "libnvinfer.so",
        Some("libnvonnxparser.so"),
    ),
    (Flavour::Lean, "libnvinfer_lean.so", None),
];

/// Major versions under which the loader is asked for bare names.
const RTX_MAJORS: [u32; 1] = [1];
const ENTERPRISE_MAJORS: [u32; 2] = [11, 10];

/// A pair of files that may be a TensorRT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// What its name says it is.
    pub flavour: Flavour,
    /// The inference library: an absolute path, or a bare name for the loader.
    pub infer: PathBuf,
    /// The ONNX parser, where there is one.
    pub parser: Option<PathBuf>,
}

/// All candidates of `path`, in the order in which they are tried.
pub(super) fn candidates(path: &LibraryPath) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = path.named.iter().flat_map(|f| in_folder(f)).collect();
    found.extend(path.loader.iter().flat_map(|f| in_folder(f)));
    if path.bare {
        found.extend(bare_names());
    }
    found.extend(path.sdk.iter().flat_map(|f| in_folder(f)));
    let mut unique: Vec<Candidate> = Vec::new();
    for candidate in found {
        if !unique.iter().any(|known| known.infer == candidate.infer) {
            unique.push(candidate);
        }
    }
    unique
}

fn in_folder(folder: &Path) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (flavour, stem, parser_stem) in STEMS {
        for infer in LibraryPath::files(folder, stem) {
            let parser = parser_stem.and_then(|stem| parser_of(&infer, stem));
            found.push(Candidate {
                flavour,
                infer,
                parser,
            });
        }
    }
    found
}

/// The parser beside `infer` whose version agrees in the most leading numbers, at least in the
/// major version where both have one.
fn parser_of(infer: &Path, stem: &str) -> Option<PathBuf> {
    let version = suffix(infer);
    let parsers = LibraryPath::files(infer.parent()?, stem).into_iter();
    let agreement = |parser: &Path| {
        let pairs = suffix(parser).into_iter().zip(version.iter().cloned());
        pairs.take_while(|(a, b)| a == b).count()
    };
    let fitting = parsers.filter(|parser| {
        let numbers = suffix(parser);
        version.is_empty() || numbers.is_empty() || agreement(parser) > 0
    });
    // `max_by_key` keeps the last of equals, `files` has the highest version first.
    fitting.rev().max_by_key(|parser| agreement(parser))
}

/// What follows `.so.` in a file name, split at dots.
fn suffix(path: &Path) -> Vec<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let version = name.split_once(".so.").map_or("", |(_, version)| version);
    let numbers = version.split('.').filter(|n| !n.is_empty());
    numbers.map(str::to_owned).collect()
}

fn bare_names() -> Vec<Candidate> {
    let mut found = Vec::new();
    for (flavour, stem, parser_stem) in STEMS {
        let majors: &[u32] = match flavour {
            Flavour::Rtx => &RTX_MAJORS,
            Flavour::Enterprise | Flavour::Lean => &ENTERPRISE_MAJORS,
        };
        found.extend(majors.iter().map(|major| Candidate {
            flavour,
            infer: format!("{stem}.{major}").into(),
            parser: parser_stem.map(|stem| format!("{stem}.{major}").into()),
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_pair_each_library_with_the_parser_of_its_version() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().canonicalize().expect("path");
        for name in [
            "libnvinfer.so.10.3.0",
            "libnvinfer.so.11.4.0",
            "libnvinfer_lean.so.11",
            "libnvinfer_plugin.so.10",
            "libnvonnxparser.so.10.3.0",
            "libnvonnxparser.so.11.4.0",
            "libtensorrt_rtx.so.1.7.1",
        ] {
            std::fs::write(root.join(name), b"x").expect("write");
        }
        let found = candidates(&LibraryPath::only(&root));
        let named: Vec<_> = found
            .iter()
            .map(|c| {
                let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
                (
                    c.flavour,
                    name(&c.infer),
                    c.parser.as_deref().and_then(name),
                )
            })
            .collect();
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            named,
            [
                (Flavour::Rtx, some("libtensorrt_rtx.so.1.7.1"), None),
                (
                    Flavour::Enterprise,
                    some("libnvinfer.so.11.4.0"),
                    some("libnvonnxparser.so.11.4.0")
                ),
                (
                    Flavour::Enterprise,
                    some("libnvinfer.so.10.3.0"),
                    some("libnvonnxparser.so.10.3.0")
                ),
                (Flavour::Lean, some("libnvinfer_lean.so.11"), None),
            ]
        );
    }

    #[test]
    fn candidates_named_first_then_loader_then_sdk() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().canonicalize().expect("path");
        for part in ["named", "loader", "sdk"] {
            std::fs::create_dir(root.join(part)).expect("mkdir");
            std::fs::write(root.join(part).join("libtensorrt_rtx.so.1"), b"x").expect("write");
        }
        let path = LibraryPath {
            named: vec![root.join("named")],
            loader: vec![root.join("loader")],
            bare: true,
            sdk: vec![root.join("sdk"), root.join("named")],
        };
        let found = candidates(&path);
        let at = |part: &str| {
            let file = root.join(part).join("libtensorrt_rtx.so.1");
            found.iter().position(|c| c.infer == file)
        };
        let bare = found
            .iter()
            .position(|c| c.infer == Path::new("libtensorrt_rtx.so.1"));
        assert!(at("named") < at("loader") && at("loader") < bare && bare < at("sdk"));
        assert_eq!(
            found
                .iter()
                .filter(|c| c.infer.starts_with(root.join("named")))
                .count(),
            1
        );
    }
}
