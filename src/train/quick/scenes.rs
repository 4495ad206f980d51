//! Pictures of which it is known what is in them.
//!
//! One JSON object a line, as in a list of items, whose other keys are passed over:
//!
//! | key | what |
//! |-----|------|
//! | `image` | path, relative to the file, without `..` |
//! | `scene.ground`  | one of the words' grounds; not told without grounds |
//! | `scene.objects` | all objects: `kind` (one of the words' kinds, singular), `colour` (one of their colours, optional), `box` (left, top, right, bottom in pixels of the picture) |
//!
//! Of several lines about a picture the first counts, so that a list of questions with the truth beside each will do.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::items::{image_path, list_path, read_lines};
use crate::quick::Words;

/// Most objects of a picture.
const OBJECTS: usize = 10_000;

/// A picture, and what is in it.
#[derive(Debug, Clone, PartialEq)]
pub struct TrueScene {
    /// The picture.
    pub image: PathBuf,
    /// Index of the ground.
    pub ground: Option<usize>,
    /// Objects: kind, colour, centre in pixels of the picture.
    pub objects: Vec<(usize, Option<usize>, [f64; 2])>,
}

#[derive(Deserialize)]
struct Line {
    image: String,
    scene: Option<SceneLine>,
}

#[derive(Deserialize)]
struct SceneLine {
    ground: Option<String>,
    objects: Vec<ObjectLine>,
}

#[derive(Deserialize)]
struct ObjectLine {
    kind: String,
    colour: Option<String>,
    #[serde(rename = "box")]
    rect: [f64; 4],
}

/// Reads the scenes of a list, or of a folder that has one, in the given words.
///
/// # Errors
/// [`Error::Malformed`] naming the line, as for items, and if a line has no scene or one in other words.
pub fn read_scenes(path: &Path, words: &Words) -> Result<Vec<TrueScene>> {
    let list = list_path(path)?;
    let mut seen = HashSet::new();
    let mut scenes = Vec::new();
    read_lines(&list, &mut |_, bytes| {
        let line: Line = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let scene = scene(&list, line, words)?;
        if seen.insert(scene.image.clone()) {
            scenes.push(scene);
        }
        Ok(())
    })?;
    match scenes.is_empty() {
        true => Err(Error::malformed(list, "has no scenes")),
        false => Ok(scenes),
    }
}

fn scene(list: &Path, line: Line, words: &Words) -> Result<TrueScene, String> {
    let image = image_path(list, &line.image)?;
    let scene = line
        .scene
        .ok_or("it has no `scene`, which says what is in the picture")?;
    if scene.objects.len() > OBJECTS {
        let n = scene.objects.len();
        return Err(format!("{n} objects, the limit is {OBJECTS}"));
    }
    let ground = match (scene.ground, words.grounds.is_empty()) {
        (_, true) => None,
        (None, false) => return Err("its scene has no `ground`".to_owned()),
        (Some(ground), false) => Some(index("ground", &ground, words.grounds.iter())?),
    };
    let objects = scene.objects.into_iter().map(|object| {
        let kinds = words.kinds.iter().map(|kind| &kind.one);
        let kind = index("kind", &object.kind, kinds)?;
        let colour = object.colour.filter(|_| !words.colours.is_empty());
        let colour = colour.map(|colour| index("colour", &colour, words.colours.iter()));
        let [left, top, right, bottom] = object.rect;
        if !(left <= right && top <= bottom && object.rect.iter().all(|x| x.is_finite())) {
            return Err(format!(
                "box {:?}: expected left, top, right, bottom",
                object.rect
            ));
        }
        let centre = [(left + right) / 2.0, (top + bottom) / 2.0];
        Ok((kind, colour.transpose()?, centre))
    });
    Ok(TrueScene {
        image,
        ground,
        objects: objects.collect::<Result<_, String>>()?,
    })
}

fn index<'a>(
    what: &str,
    word: &str,
    mut words: impl Iterator<Item = &'a String>,
) -> Result<usize, String> {
    let found = words.position(|known| known == word);
    found.ok_or_else(|| format!("{what} `{word}` is none of the words'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        let text = include_str!("../../../onnx/uav-tiny/recipe/quick.json");
        serde_json::from_str(text).expect("words")
    }

    fn read(text: &str) -> Result<Vec<TrueScene>> {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("items.jsonl"), text).expect("write");
        read_scenes(dir.path(), &words())
    }

    #[test]
    fn scenes_are_read_once_for_each_picture() {
        let scenes = read(
            r#"{"image": "a.png", "prompt": "p", "scene": {"ground": "soil", "objects": [{"kind": "boat", "colour": "blue", "box": [0, 10, 4, 20]}]}}
            {"image": "a.png", "scene": {"ground": "grass", "objects": []}}

            {"image": "b/c.png", "scene": {"ground": "grass", "objects": []}}"#,
        );
        let scenes = scenes.expect("scenes");
        assert_eq!(scenes.len(), 2);
        assert_eq!(scenes[0].ground, Some(2));
        assert_eq!(scenes[0].objects, [(5, Some(2), [2.0, 15.0])]);
        assert!(scenes[1].image.ends_with("b/c.png"));
    }

    #[test]
    fn lines_that_are_no_scenes_are_refused_with_their_number() {
        let good = r#"{"image": "a.png", "scene": {"ground": "soil", "objects": []}}"#;
        let object = |fields: &str| {
            format!(
                r#"{{"image": "b.png", "scene": {{"ground": "soil", "objects": [{{{fields}}}]}}}}"#
            )
        };
        for (bad, reason) in [
            ("x".to_owned(), "expected value"),
            (r#"{"image": "b.png"}"#.to_owned(), "no `scene`"),
            (good.replace("a.png", "../a.png"), "inside"),
            (good.replace("soil", "sand"), "`sand`"),
            (
                r#"{"image": "b.png", "scene": {"objects": []}}"#.to_owned(),
                "no `ground`",
            ),
            (
                object(r#""kind": "cars", "box": [0, 0, 1, 1]"#),
                "kind `cars`",
            ),
            (
                object(r#""kind": "car", "colour": "pink", "box": [0, 0, 1, 1]"#),
                "colour `pink`",
            ),
            (object(r#""kind": "car", "box": [2, 0, 1, 1]"#), "box"),
            (object(r#""kind": "car", "box": [0, 0, 1]"#), "line 2"),
            (object(r#""kind": "car""#), "box"),
        ] {
            let error = read(&format!("{good}\n{bad}\n")).expect_err(reason);
            let told = error.to_string();
            assert!(matches!(error, Error::Malformed { .. }), "{told}");
            assert!(
                told.contains("line 2") && told.contains(reason),
                "{reason}: {told}"
            );
        }
        let error = read("\n").expect_err("none").to_string();
        assert!(error.contains("no scenes"), "{error}");
    }
}
