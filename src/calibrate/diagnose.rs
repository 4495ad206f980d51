//! Which node makes values that are not finite.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::graphs::{DECODER, VISION, lowered, open};
use super::record::{NotFinite, Shared};
use crate::cpu::{Observed, Observer};
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::Model;
use crate::onnx::proto::GraphProto;
use crate::pipeline::Ask;
use crate::preprocess::Frame;
use crate::sync::lock;

/// Runs the item again, looking at every value of the graph, and names the first node that makes
/// `fault` out of finite values.
///
/// # Errors
/// Those of reading the graphs; the finding itself is the returned value.
pub fn diagnose(
    model: &Model,
    fault: &NotFinite,
    item: &Item,
    frame: &Frame,
    ask: &Ask<'_>,
) -> Result<Error> {
    let [vision, decoder] = [lowered(VISION, model)?, lowered(DECODER, model)?];
    let suspect = if fault.component == VISION {
        &vision
    } else {
        &decoder
    };
    let graph = suspect.graph().clone();
    let constant = graph.constant_values();
    let inputs = graph.inputs();
    let made = graph.node.iter().flat_map(|node| &node.output);
    let names: Vec<String> = inputs
        .iter()
        .map(|input| &input.name)
        .chain(made.filter(|name| !name.is_empty() && !constant.contains(name.as_str())))
        .cloned()
        .collect();
    let bad = Arc::new(Mutex::new(HashMap::new()));
    let watch: (Vec<String>, Box<dyn Observer>) = (
        names.clone(),
        Box::new(Inspector {
            names,
            until: fault.name.clone(),
            bad: Arc::clone(&bad),
        }),
    );
    let (vision, decoder) = if fault.component == VISION {
        ((vision, Some(watch)), (decoder, None))
    } else {
        ((vision, None), (decoder, Some(watch)))
    };
    let mut pipeline = open(model, vision, decoder, &Shared::new(), Default::default())?;
    // It ends where the fault shows, with an error that says no more than is known.
    let _ = pipeline.ask(frame, &item.prompt, ask, &mut |_| {});

    let bad = lock(&bad);
    let what = bad
        .get(&fault.name)
        .copied()
        .unwrap_or("values that are not finite");
    let (node, op) = origin(&graph, &fault.name, &bad);
    Ok(Error::Unsupported {
        node,
        op,
        reason: format!(
            "makes {what} of finite inputs in {} of {} (seen in `{}`, on {})",
            fault.component,
            model.dir.display(),
            fault.name,
            item.origin
        ),
    })
}

/// Name and operator of the first node, in the graph's order, that makes bad values of good ones
/// and from which bad values lead to `name`.
fn origin(graph: &GraphProto, name: &str, bad: &HashMap<String, &'static str>) -> (String, String) {
    let producers = graph.producers();
    let (mut open, mut seen) = (vec![name], HashSet::new());
    let (mut first, mut input) = (None, None);
    while let Some(name) = open.pop() {
        let Some(&index) = producers.get(name) else {
            input = Some(name);
            continue;
        };
        if !seen.insert(index) {
            continue;
        }
        let mut makes = true;
        graph.node[index].each_read(&mut |read| {
            if bad.contains_key(read) {
                makes = false;
                open.push(read);
            }
        });
        if makes {
            first = Some(first.map_or(index, |other: usize| other.min(index)));
        }
    }
    match (first, input) {
        (Some(index), _) => {
            let node = &graph.node[index];
            (node.label().to_owned(), node.op())
        }
        (None, Some(input)) => (input.to_owned(), "graph input".to_owned()),
        (None, None) => (name.to_owned(), "unknown".to_owned()),
    }
}

/// Notes which values are not finite, up to a certain one.
struct Inspector {
    names: Vec<String>,
    until: String,
    bad: Arc<Mutex<HashMap<String, &'static str>>>,
}

impl Observer for Inspector {
    fn observe(&mut self, values: &[Observed<'_>]) -> Result<()> {
        let mut bad = lock(&self.bad);
        for value in values {
            let what = if value.data.iter().any(|x| x.is_nan()) {
                "NaN"
            } else if value.data.iter().any(|x| x.is_infinite()) {
                "infinity"
            } else {
                continue;
            };
            bad.insert(self.names[value.tap].clone(), what);
        }
        if bad.contains_key(&self.until) {
            return Err(Error::Cancelled);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::NodeProto;

    #[test]
    fn origin_is_the_first_node_with_good_inputs_that_leads_to_the_fault() {
        let graph = GraphProto {
            node: vec![
                NodeProto::new("Log", &["x"], &["mask"]),
                NodeProto::new("Exp", &["x"], &["a"]),
                NodeProto::new("Sqrt", &["x"], &["c"]),
                NodeProto::new("Add", &["a", "c"], &["b"]),
                NodeProto::new("Relu", &["b"], &["y"]),
            ],
            ..GraphProto::default()
        };
        let bad = |names: &[&str]| names.iter().map(|&n| (n.to_owned(), "NaN")).collect();
        for (names, op) in [
            (&["mask", "a", "b", "y"][..], "Exp"),
            (&["mask", "a", "c", "b", "y"], "Exp"),
            (&["mask", "c", "b", "y"], "Sqrt"),
            (&["y"], "Relu"),
            (&["x", "a", "b", "y"], "graph input"),
        ] {
            assert_eq!(origin(&graph, "y", &bad(names)).1, op, "{names:?}");
        }
    }
}
