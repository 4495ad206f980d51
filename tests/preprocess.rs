//! The `preprocess` stage against Pillow and transformers (`tests/golden/preprocess/make.py`),
//! and against bytes that are no images or configurations.

#![allow(clippy::unwrap_used)] // also in helpers, which are no tests to clippy

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use trtvlm::Error;
use trtvlm::preprocess::{Fit, Frame, PixelValues, Processor, Tiles};

fn golden(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/preprocess").join(name)
}

fn image(name: &str) -> Vec<u8> {
    std::fs::read(golden("images").join(name)).unwrap()
}

/// The same formula as in `make.py`.
fn frame(width: usize, height: usize) -> Frame {
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let channels = pixels.flat_map(|(x, y)| (0..3usize).map(move |c| (x, y, c)));
    let level = |(x, y, c)| (x * (3 + c) / 2 + y * (5 - c)) ^ ((x / 7) * (y / 5) * (11 + c));
    let rgb = channels.map(|at| level(at) as u8).collect();
    Frame::new("made", width, height, rgb).unwrap()
}

/// A model folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn processor(config: &Value, model: &Value) -> Result<Processor, Error> {
    let dir = folder(&[
        ("preprocessor_config.json", &config.to_string()),
        ("config.json", &model.to_string()),
    ]);
    Processor::load(dir.path())
}

fn fastvlm(side: usize) -> Value {
    json!({"image_processor_type": "CLIPImageProcessor", "do_center_crop": true, "do_normalize": true,
        "do_rescale": true, "do_resize": true, "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side}, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0],
        "resample": 3, "rescale_factor": 0.00392156862745098})
}

fn smolvlm(side: usize, longest: usize) -> Value {
    json!({"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": true, "do_pad": true,
        "max_image_size": {"longest_edge": side}, "size": {"longest_edge": longest},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 1,
        "rescale_factor": 0.00392156862745098})
}

fn digest(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

// ------------------------------------------------------------------------------------ files

/// Largest difference in levels that a JPEG decoder may show to libjpeg-turbo.
const JPEG_LEVELS: u8 = 3;

#[test]
fn files_of_every_kind_decode_as_pil_converts_them() {
    let bytes = std::fs::read(golden("decoded.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert!(expected.len() > 50);
    let mut wrong = Vec::new();
    for (name, tensor) in expected.iter() {
        let frame = Frame::load(&golden("images").join(name)).unwrap();
        assert_eq!([frame.height(), frame.width(), 3], tensor.shape(), "{name}");
        let pairs = frame.rgb().iter().zip(tensor.data());
        let most = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let allowed = if name.contains("jp") { JPEG_LEVELS } else { 0 };
        if most > allowed {
            wrong.push(format!("{name}: off by {most}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn decode_of_bytes_that_are_no_image_names_the_frame() {
    let huge = b"P6\n60000 60000\n255\n".as_slice();
    for (bytes, what) in [
        (b"".as_slice(), "empty"),
        (b"not an image at all", "text"),
        (b"\x89PNG\r\n\x1a\n", "signature alone"),
        (b"P6\n0 5\n255\n", "no width"),
        (
            b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0",
            "a format that is not read",
        ),
    ] {
        let error = Frame::decode("camera 3", bytes).unwrap_err();
        assert!(matches!(error, Error::Image { .. }), "{what}: {error:?}");
        assert!(error.to_string().contains("camera 3"), "{what}: {error}");
    }
    let error = Frame::decode("camera 3", huge).unwrap_err();
    assert!(
        matches!(error, Error::TooLarge { limit: 32_768, .. }),
        "{error:?}"
    );
}

/// Overwrites the size in a file's header.
fn with_size(name: &str, offset: usize, size: &[u8]) -> Vec<u8> {
    let mut bytes = image(name);
    bytes[offset..offset + size.len()].copy_from_slice(size);
    if name.ends_with(".png") {
        let checksum = crc32(&bytes[12..29]).to_be_bytes();
        bytes[29..33].copy_from_slice(&checksum);
    }
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), step))
}

#[test]
fn decode_of_a_60000_x_60000_header_is_refused_before_memory_is_asked_for() {
    let be = 60_000u32.to_be_bytes();
    let le = 60_000u32.to_le_bytes();
    let jpeg = image("grey.jpg");
    let at = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
    for (what, bytes) in [
        ("png", with_size("rgb.png", 16, &[be, be].concat())),
        ("bmp", with_size("rgb.bmp", 18, &[le, le].concat())),
        (
            "gif",
            with_size(
                "palette.gif",
                6,
                &[le[..2].to_vec(), le[..2].to_vec()].concat(),
            ),
        ),
        (
            "jpeg",
            with_size("grey.jpg", at, &[&be[2..], &be[2..]].concat()),
        ),
    ] {
        let error = Frame::decode(what, &bytes).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{what}: {error:?}");
    }
}

#[test]
fn decode_of_a_zero_sized_header_is_refused() {
    for (what, bytes) in [
        ("png", with_size("rgb.png", 16, &[0; 4])),
        ("bmp", with_size("rgb.bmp", 18, &[0; 4])),
        ("gif", with_size("palette.gif", 6, &[0; 4])),
    ] {
        let error = Frame::decode(what, &bytes).unwrap_err();
        assert!(matches!(error, Error::Image { .. }), "{what}: {error:?}");
    }
}

#[test]
fn decode_of_files_cut_short_is_refused() {
    let mut accepted = Vec::new();
    for entry in std::fs::read_dir(golden("images")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("animation") {
            continue; // its first frame, which is all that is read, ends early
        }
        let bytes = image(&name);
        for keep in [bytes.len() / 4, bytes.len() / 2, bytes.len() * 3 / 4] {
            match Frame::decode(&name, &bytes[..keep]) {
                Err(Error::Image { .. } | Error::TooLarge { .. }) => {}
                other => accepted.push(format!("{name} at {keep} of {}: {other:?}", bytes.len())),
            }
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn decode_of_damaged_files_never_panics(
        file in 0usize..53,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut files: Vec<_> = std::fs::read_dir(golden("images")).unwrap()
            .map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let mut bytes = std::fs::read(&files[file % files.len()]).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        match Frame::decode("damaged", &bytes) {
            Ok(frame) => prop_assert_eq!(frame.rgb().len(), frame.width() * frame.height() * 3),
            Err(Error::Image { .. } | Error::TooLarge { .. }) => {}
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn decode_of_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Frame::decode("random", &bytes).is_err());
    }
}

// ------------------------------------------------------------------------------ pixel values

/// What differs between `values` and the golden case, if anything.
fn difference(values: &PixelValues, case: &Value) -> Option<String> {
    let shape: Vec<usize> = serde_json::from_value(case["shape"].clone()).unwrap();
    let grid: Option<(usize, usize)> = serde_json::from_value(case["grid"].clone()).unwrap();
    let data = values.pixels.data();
    if values.pixels.shape() != shape || values.grid != grid {
        return Some(format!("{:?} {:?}", values.pixels.shape(), values.grid));
    }
    if case["mask"] != values.mask.is_some() {
        return Some("mask".to_owned());
    }
    if let Some(mask) = &values.mask {
        assert_eq!(mask.shape(), [shape[0], shape[2], shape[3]]);
        assert!(mask.data().iter().all(|&m| m == 1));
    }
    if case["sha256"] == digest(data) {
        return None;
    }
    let samples: Vec<(usize, f64)> = serde_json::from_value(case["samples"].clone()).unwrap();
    let pairs: Vec<_> = samples
        .iter()
        .map(|&(at, v)| (at, v as f32, data[at]))
        .collect();
    Some(format!("values, (at, expected, got): {pairs:?}"))
}

#[test]
fn run_on_made_frames_equals_the_hub_processors_bit_for_bit() {
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(golden("cases.json")).unwrap()).unwrap();
    assert!(cases.len() > 60);
    let mut wrong = Vec::new();
    for case in &cases {
        let model = json!({"image_aspect_ratio": case["image_aspect_ratio"]});
        let processor = processor(&case["config"], &model).unwrap();
        let (w, h): (usize, usize) = serde_json::from_value(case["frame"].clone()).unwrap();
        let fit = match case["fit"].as_str().unwrap() {
            "processor" => Fit::Processor,
            "pad" => Fit::Pad,
            "stretch" => Fit::Stretch,
            other => panic!("{other}"),
        };
        let tiles = case["tiles"]
            .as_u64()
            .map_or(Tiles::Auto, |n| Tiles::Count(n as usize));
        let values = processor.run(&frame(w, h), fit, tiles).unwrap();
        if let Some(what) = difference(&values, case) {
            wrong.push(format!("{} {w}x{h}: {what}", case["name"]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn run_with_a_centre_crop_reports_what_it_loses() {
    let wide = frame(640, 360);
    let plain = processor(&fastvlm(64), &json!({})).unwrap();
    let cropped = plain.run(&wide, Fit::Processor, Tiles::Auto).unwrap();
    assert!(
        (cropped.notes.cropped_share - 0.4375).abs() < 0.01,
        "{:?}",
        cropped.notes
    );
    assert_eq!(cropped.content, [0, 0, 64, 64]);
    let padding = processor(&fastvlm(64), &json!({"image_aspect_ratio": "pad"})).unwrap();
    let padded = padding.run(&wide, Fit::Processor, Tiles::Auto).unwrap();
    assert_eq!(padded.notes.cropped_share, 0.0);
    assert_eq!(padded.content, [0, 14, 64, 50]);
    assert_eq!(padded.content_of(0), padded.content);
    // 64 of the 113 columns that the frame is resized to, from the 24th on.
    let [left, top, right, bottom] = cropped.shown;
    assert!(
        (left - 24.0 * 640.0 / 113.0).abs() < 1e-9 && (right - 88.0 * 640.0 / 113.0).abs() < 1e-9
    );
    assert_eq!((top, bottom), (0.0, 360.0));
    assert_eq!(padded.shown, [0.0, 0.0, 640.0, 360.0]);
    let whole = padded.view().in_frame(0, [0.0, 14.0, 64.0, 50.0]);
    assert_eq!(whole, padded.shown);
    let row = |y: usize| &padded.pixels.data()[y * 64..(y + 1) * 64];
    assert!(row(0).iter().all(|&v| v == 0.0) && row(32).iter().any(|&v| v != 0.0));
    assert_eq!(plain.run(&wide, Fit::Pad, Tiles::Auto).unwrap(), padded);
}

#[test]
fn run_with_padding_and_tiles_tells_which_tiles_are_padding() {
    let processor = processor(&smolvlm(32, 128), &json!({})).unwrap();
    let values = processor
        .run(&frame(400, 100), Fit::Pad, Tiles::Auto)
        .unwrap();
    assert_eq!(values.grid, Some((4, 4)));
    assert_eq!(values.content, [0, 48, 128, 80]);
    let of = |index| values.content_of(index);
    assert_eq!((of(0), of(15)), ([0; 4], [0; 4]));
    assert_eq!((of(4), of(8)), ([0, 16, 32, 32], [0, 0, 32, 16]));
    assert_eq!(of(16), [0, 12, 32, 20]);
    let view = values.view();
    assert_eq!(
        view.in_frame(4, [0.0, 16.0, 32.0, 32.0]),
        [0.0, 0.0, 100.0, 50.0]
    );
    assert_eq!(
        view.in_frame(10, [0.0, 0.0, 32.0, 16.0]),
        [200.0, 50.0, 300.0, 100.0]
    );
    assert_eq!(
        view.in_frame(16, [0.0, 12.0, 32.0, 20.0]),
        [0.0, 0.0, 400.0, 100.0]
    );
}

#[test]
fn run_with_a_tile_count_never_makes_more() {
    let processor = processor(&smolvlm(32, 256), &json!({})).unwrap();
    for (w, h) in [(320, 180), (100, 300), (32, 32), (500, 10)] {
        for most in 1..70 {
            let values = processor
                .run(&frame(w, h), Fit::Processor, Tiles::Count(most))
                .unwrap();
            let n = values.pixels.shape()[0];
            assert!(n <= most, "{n} tiles of {most} from {w}x{h}");
            assert_eq!(
                n,
                values.grid.map_or(1, |(rows, columns)| rows * columns + 1)
            );
        }
    }
    let error = processor
        .run(&frame(9, 9), Fit::Processor, Tiles::Count(0))
        .unwrap_err();
    assert!(
        matches!(error, Error::Argument { name: "tiles", .. }),
        "{error:?}"
    );
}

#[test]
fn run_with_more_tiles_than_the_limit_is_refused() {
    let processor = processor(&smolvlm(32, 4096), &json!({})).unwrap();
    let error = processor
        .run(&frame(64, 64), Fit::Processor, Tiles::Auto)
        .unwrap_err();
    assert!(
        matches!(error, Error::TooLarge { limit: 64, .. }),
        "{error:?}"
    );
    assert!(
        processor
            .run(&frame(64, 64), Fit::Processor, Tiles::Count(64))
            .is_ok()
    );
}

#[test]
fn run_on_the_thinnest_frames_keeps_its_shape() {
    let crop = processor(&fastvlm(32), &json!({})).unwrap();
    let tiled = processor(&smolvlm(32, 128), &json!({})).unwrap();
    for (w, h) in [(1, 1), (1, 30_000), (30_000, 1), (2, 3)] {
        for fit in [Fit::Processor, Fit::Pad, Fit::Stretch] {
            let frame = Frame::new("thin", w, h, vec![200; w * h * 3]).unwrap();
            let one = crop.run(&frame, fit, Tiles::Auto).unwrap();
            assert_eq!(one.pixels.shape(), [1, 3, 32, 32]);
            let many = tiled.run(&frame, fit, Tiles::Auto).unwrap();
            assert_eq!(many.pixels.shape()[1..], [3, 32, 32]);
        }
    }
}

// ----------------------------------------------------------------------------- configuration

#[test]
fn load_of_a_nested_processor_config_takes_it_first() {
    let nested = json!({"image_processor": fastvlm(96), "patch_size": 64}).to_string();
    let flat = fastvlm(32).to_string();
    let both = folder(&[
        ("processor_config.json", &nested),
        ("preprocessor_config.json", &flat),
    ]);
    assert_eq!(Processor::load(both.path()).unwrap().side(), 96);
    let alone = folder(&[("processor_config.json", &nested)]);
    assert_eq!(Processor::load(alone.path()).unwrap().side(), 96);
    let unrelated = folder(&[
        ("processor_config.json", "{}"),
        ("preprocessor_config.json", &flat),
    ]);
    assert_eq!(Processor::load(unrelated.path()).unwrap().side(), 32);
}

#[test]
fn load_of_a_folder_without_configuration_names_the_file() {
    let dir = folder(&[]);
    let error = Processor::load(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("preprocessor_config.json"));
}

#[test]
fn load_of_short_sizes_reads_them_as_the_hub_does() {
    let mut config = fastvlm(32);
    config["size"] = json!(48);
    config["crop_size"] = json!(40);
    assert_eq!(processor(&config, &json!({})).unwrap().side(), 40);
    config["do_center_crop"] = json!(false);
    assert_eq!(
        processor(&config, &json!({"image_aspect_ratio": "pad"}))
            .unwrap()
            .side(),
        48
    );
    assert!(processor(&config, &json!({"image_aspect_ratio": null})).is_err());
}

/// Sets `key` in a configuration, or removes it for null.
fn with(mut config: Value, key: &str, value: Value) -> Value {
    let entries = config.as_object_mut().unwrap();
    match value {
        Value::Null => entries.remove(key),
        value => entries.insert(key.to_owned(), value),
    };
    config
}

#[test]
fn load_of_wrong_entries_names_file_and_entry() {
    let edge = |n: Value| json!({"shortest_edge": n});
    let cases = [
        ("image_processor_type", json!(null)),
        ("image_processor_type", json!("ViTImageProcessor")),
        ("image_processor_type", json!(7)),
        ("size", json!(null)),
        ("size", json!("large")),
        ("size", json!({})),
        ("size", edge(json!(0))),
        ("size", edge(json!(-5))),
        ("size", edge(json!(1e9))),
        ("size", edge(json!(1_000_000_000u64))),
        ("size", edge(json!(12.5))),
        ("size", json!({"longest_edge": 64})),
        ("size", json!({"shortest_edge": 64, "longest_edge": 64})),
        ("crop_size", json!(null)),
        ("crop_size", json!({"height": 64})),
        ("crop_size", json!({"height": 64, "width": 65})),
        ("crop_size", json!({"height": 0, "width": 0})),
        ("crop_size", json!({"height": 8192, "width": 8192})),
        ("resample", json!(null)),
        ("resample", json!(6)),
        ("resample", json!(-1)),
        ("resample", json!("bicubic")),
        ("rescale_factor", json!(null)),
        ("rescale_factor", json!(0)),
        ("rescale_factor", json!(-1.0)),
        ("image_mean", json!(null)),
        ("image_mean", json!([0.0, 0.0])),
        ("image_mean", json!([0.0, 0.0, 1e9])),
        ("image_mean", json!([0.0, "a", 0.0])),
        ("image_std", json!(null)),
        ("image_std", json!([1.0, 0.0, 1.0])),
        ("image_std", json!([1.0, -1.0, 1.0])),
        ("image_std", json!([])),
        ("do_resize", json!("yes")),
    ];
    let check = |config: Value, key: &str| match processor(&config, &json!({})) {
        Err(error @ Error::Malformed { .. }) => {
            let text = error.to_string();
            assert!(text.contains("preprocessor_config.json"), "{text}");
            assert!(text.contains(&format!("`{key}`")), "{key}: {text}");
        }
        other => panic!("{key} in {config}: {other:?}"),
    };
    for (key, value) in cases {
        check(with(fastvlm(64), key, value), key);
    }
    for (key, value) in [
        ("max_image_size", json!(null)),
        ("max_image_size", json!(64)),
        ("max_image_size", json!({"longest_edge": 0})),
        ("max_image_size", json!({"longest_edge": 100_000})),
        ("size", json!({"shortest_edge": 64})),
        ("size", json!({"longest_edge": 0})),
        ("do_image_splitting", json!(1)),
    ] {
        check(with(smolvlm(32, 64), key, value), key);
    }
}

#[test]
fn load_of_levels_that_overflow_is_refused() {
    let config = with(fastvlm(64), "image_std", json!([1e-300, 1.0, 1.0]));
    let error = processor(&config, &json!({})).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[test]
fn load_of_files_that_are_no_objects_is_refused() {
    let good = fastvlm(64).to_string();
    for bad in ["", "{", "[1]", "null", "\u{0}", &"[".repeat(100_000)] {
        for name in [
            "preprocessor_config.json",
            "processor_config.json",
            "config.json",
        ] {
            let dir = folder(&[("preprocessor_config.json", &good), (name, bad)]);
            let error = Processor::load(dir.path()).unwrap_err();
            assert!(
                matches!(error, Error::Malformed { .. }),
                "{name}: {error:?}"
            );
            assert!(error.to_string().contains(name), "{error}");
        }
    }
    let dir = folder(&[("processor_config.json", r#"{"image_processor": 3}"#)]);
    assert!(matches!(
        Processor::load(dir.path()),
        Err(Error::Malformed { .. })
    ));
}

#[test]
fn load_of_an_image_aspect_ratio_that_is_not_supported_names_it() {
    let error = processor(&fastvlm(64), &json!({"image_aspect_ratio": "anyres"})).unwrap_err();
    assert!(error.to_string().contains("anyres") && error.to_string().contains("config.json"));
}
