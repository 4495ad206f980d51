//! Words for tests.

use serde_json::json;

use super::words::Words;

/// Cars and boats that are red or blue, and trees, on grass or soil.
pub(super) fn words() -> Words {
    let words = json!({
        "kinds": [
            {"one": "car", "many": "cars"},
            {"one": "tree", "many": "trees", "plain": true},
            {"one": "boat", "many": "boats"}
        ],
        "colours": ["red", "blue"],
        "grounds": ["grass", "soil"],
        "places": [
            ["top left", "top", "top right"],
            ["left", "center", "right"],
            ["bottom left", "bottom", "bottom right"]
        ],
        "near": 0.4,
        "questions": {
            "describe": ["describe the scene"],
            "count": ["how many {many} are there"],
            "find": ["find the {object}"],
            "near": ["is there a {one} near the {other}"],
            "colour": ["what colour is the {one}"]
        },
        "answers": {
            "coloured": "{colour} {kind}",
            "several": "{n} {object}",
            "comma": ", ",
            "and": " and ",
            "nothing": "nothing",
            "scene": "{objects} on {ground}",
            "none": "no {object}",
            "found": "{object} at {place}",
            "absent": "no {object}",
            "yes": "yes",
            "no": "no"
        }
    });
    serde_json::from_value(words).expect("words")
}
