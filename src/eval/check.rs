//! Which items can be asked and judged.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::items::Item;

/// Most names of missing pictures in a message.
const NAMED: usize = 5;

/// Items whose pictures are there.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// These.
    pub items: Vec<Item>,
    /// Pictures that are not there, or are no files.
    pub missing: Vec<PathBuf>,
    /// Items of the whole list that have no right answer.
    pub unanswered: usize,
}

/// Takes stock of `items`, which were read from `data`, before a model is loaded.
///
/// A list that has no answers at all is one to measure speed or agreement with. One in which some
/// answers are missing is faulty: accuracy would be that of other items than its name says. With
/// `skip` missing pictures and answers are counted and passed over.
///
/// # Errors
/// [`Error::Malformed`] naming the first pictures, or the first item without an answer, or if no
/// item is left.
pub fn check_items(data: &Path, items: Vec<Item>, skip: bool) -> Result<Checked> {
    let total = items.len();
    let unanswered: Vec<&Item> = items.iter().filter(|i| i.answer.is_none()).collect();
    let n_unanswered = unanswered.len();
    if let Some(first) = unanswered.first()
        && n_unanswered < total
        && !skip
    {
        let reason = format!(
            "{n_unanswered} of {total} items have no answer, the first at {}; --skip-missing asks them without judging",
            first.origin
        );
        return Err(Error::malformed(data, reason));
    }
    let is_there = |item: &Item| std::fs::metadata(&item.image).is_ok_and(|meta| meta.is_file());
    let (items, without): (Vec<Item>, Vec<Item>) = items.into_iter().partition(is_there);
    let missing: Vec<PathBuf> = without.into_iter().map(|item| item.image).collect();
    if !missing.is_empty() && !skip {
        let reason = format!(
            "{} of {total} pictures are missing: {}; --skip-missing leaves them out",
            missing.len(),
            named(&missing)
        );
        return Err(Error::malformed(data, reason));
    }
    if items.is_empty() {
        let reason = format!("none of its {total} pictures is there: {}", named(&missing));
        return Err(Error::malformed(data, reason));
    }
    Ok(Checked {
        items,
        missing,
        unanswered: n_unanswered,
    })
}

/// The first of some names.
fn named(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths
        .iter()
        .take(NAMED)
        .map(|p| p.display().to_string())
        .collect();
    let more = match paths.len() > NAMED {
        true => ", …",
        false => "",
    };
    names.join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(image: PathBuf, answer: Option<&str>) -> Item {
        Item {
            origin: format!("of {}", image.display()),
            image,
            prompt: "what".to_owned(),
            answer: answer.map(str::to_owned),
            family: None,
            token_ids: None,
            eos: None,
        }
    }

    #[test]
    fn items_that_cannot_be_asked_or_judged_are_refused_or_counted() {
        let dir = tempfile::tempdir().expect("dir");
        let there = dir.path().join("1.png");
        std::fs::write(&there, b"x").expect("write");
        let gone = |i: usize| item(dir.path().join(format!("gone{i}.png")), Some("a"));
        let good = || item(there.clone(), Some("a"));
        let data = Path::new("items.jsonl");

        let list = || vec![good(), gone(1), gone(2)];
        let error = check_items(data, list(), false).expect_err("missing");
        let text = error.to_string();
        assert!(
            text.contains("2 of 3") && text.contains("gone1.png") && text.contains("gone2.png")
        );
        let checked = check_items(data, list(), true).expect("skipped");
        assert_eq!((checked.items.len(), checked.missing.len()), (1, 2));

        let list = || vec![good(), item(there.clone(), None)];
        let error = check_items(data, list(), false).expect_err("no answer");
        assert!(error.to_string().contains("1 of 2 items"), "{error}");
        let checked = check_items(data, list(), true).expect("skipped");
        assert_eq!((checked.items.len(), checked.unanswered), (2, 1));
        let none = vec![item(there.clone(), None); 2];
        assert_eq!(check_items(data, none, false).expect("none").unanswered, 2);

        let folder = item(dir.path().to_path_buf(), Some("a"));
        for skip in [true, false] {
            let error = check_items(data, vec![gone(1), folder.clone()], skip);
            let text = error.expect_err("nothing is left").to_string();
            assert!(text.contains("gone1.png"), "{text}");
        }
        let many: Vec<Item> = (0..9).map(gone).collect();
        let text = check_items(data, many, true).expect_err("none").to_string();
        assert!(
            text.contains("gone4.png, …") && !text.contains("gone5.png"),
            "{text}"
        );
    }
}
