//! Cutting a graph into stretches between which few values are alive.

use std::collections::{HashMap, HashSet};

use crate::onnx::proto::{GraphProto, ValueInfoProto};

/// One stretch of a graph, by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Values that come from outside the stretch, inputs of the graph included.
    pub reads: Vec<String>,
    /// Values that later stretches or the caller need.
    pub makes: Vec<String>,
    /// Those of the values asked for that are made in it: index and name.
    pub taps: Vec<(usize, String)>,
}

impl Cut {
    /// Everything that a run of the stretch is asked for, each value once.
    pub fn asked(&self) -> Vec<&String> {
        let mut seen = HashSet::new();
        let taps = self.taps.iter().map(|(_, name)| name);
        let all = self.makes.iter().chain(taps);
        all.filter(|name| seen.insert(*name)).collect()
    }
}

/// Cuts a graph whose nodes stand in topological order into stretches in which at most `max_taps`
/// of the values `taps` are made, where few values cross the border.
pub fn cut(graph: &GraphProto, taps: &[String], max_taps: usize) -> Vec<Cut> {
    let n_nodes = graph.node.len();
    let constant = graph.constant_values();
    let producers = graph.producers();
    let last_read: HashMap<&str, usize> = graph
        .consumers()
        .into_iter()
        .filter_map(|(name, readers)| Some((name, *readers.last()?)))
        .collect();
    let crosses = |name: &str, border: usize| {
        !constant.contains(name)
            && producers.get(name).is_some_and(|&made| made < border)
            && last_read.get(name).is_some_and(|&read| read >= border)
    };

    let mut n_crossing = vec![0isize; n_nodes + 2];
    for (name, &made) in &producers {
        if let Some(&read) = last_read.get(name).filter(|_| !constant.contains(name)) {
            n_crossing[made + 1] += 1;
            n_crossing[read + 1] -= 1;
        }
    }
    for border in 1..n_crossing.len() {
        n_crossing[border] += n_crossing[border - 1];
    }
    let mut tapped: Vec<usize> = taps
        .iter()
        .filter_map(|tap| producers.get(tap.as_str()).copied())
        .collect();
    tapped.sort_unstable();
    let mut borders = vec![0];
    let mut first = 0;
    while tapped.len() - first > max_taps {
        let limit = tapped[first + max_taps];
        let earliest = (tapped[first] + 1).min(limit.max(1));
        let border = (earliest..=limit).rev().min_by_key(|&b| n_crossing[b]);
        let border = border.unwrap_or(limit).max(tapped[first] + 1);
        borders.push(border);
        first += tapped[first..].partition_point(|&made| made < border);
    }
    borders.push(n_nodes);

    let returned: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let inputs: HashSet<String> = graph.inputs().into_iter().map(|i| i.name).collect();
    let segment = |border: &[usize]| {
        let [start, end] = [border[0], border[1]];
        let mut reads = Vec::new();
        let mut seen = HashSet::new();
        let mut read = |name: &str| {
            if (inputs.contains(name) || crosses(name, start)) && seen.insert(name.to_owned()) {
                reads.push(name.to_owned());
            }
        };
        for node in &graph.node[start..end] {
            node.each_read(&mut read);
        }
        let taps: Vec<(usize, String)> = taps
            .iter()
            .enumerate()
            .filter(|(_, tap)| {
                let made = producers.get(tap.as_str());
                made.is_some_and(|made| (start..end).contains(made))
            })
            .map(|(index, tap)| (index, tap.clone()))
            .collect();
        let makes: Vec<String> = graph.node[start..end]
            .iter()
            .flat_map(|node| &node.output)
            .filter(|name| returned.contains(name.as_str()) || crosses(name, end))
            .cloned()
            .collect();
        Cut { reads, makes, taps }
    };
    borders.windows(2).map(segment).collect()
}

/// Makes values outputs of a graph, each once.
pub(super) fn expose<'a>(graph: &mut GraphProto, names: impl IntoIterator<Item = &'a String>) {
    let mut returned: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    for name in names {
        if returned.insert(name.clone()) {
            graph.output.push(ValueInfoProto {
                name: name.clone(),
                ..ValueInfoProto::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DataType::F32;
    use crate::onnx::ValueType;
    use crate::onnx::proto::{NodeProto, TensorProto};

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto::from(&ValueType {
            name: name.to_owned(),
            dtype: Some(F32),
            dims: None,
        })
    }

    /// A residual chain of three blocks: r1 = x + f(x), r2 = r1 + f(r1), y = r2 + f(r2).
    fn chain() -> GraphProto {
        let mut node = Vec::new();
        for (i, o) in [("x", "r1"), ("r1", "r2"), ("r2", "y")] {
            let [h, g] = [format!("{i}.h"), format!("{i}.g")];
            node.push(NodeProto::new("MatMul", &[i, "w"], &[&h]));
            node.push(NodeProto::new("Relu", &[&h], &[&g]));
            node.push(NodeProto::new("Add", &[i, &g], &[o]));
        }
        GraphProto {
            node,
            initializer: vec![TensorProto::from_f32("w", &[2, 2], &[1.0; 4])],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }
    }

    #[test]
    fn graph_is_cut_where_one_value_crosses() {
        let graph = chain();
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let taps = names(&["x", "x.g", "r1", "r1.g", "r2", "r2.g"]);
        let cuts = cut(&graph, &taps, 2);
        let crossing: Vec<_> = cuts.iter().map(|cut| cut.reads.clone()).collect();
        assert_eq!(crossing, [names(&["x"]), names(&["r1"]), names(&["r2"])]);
        assert_eq!(cuts[0].taps, [(1, "x.g".to_owned()), (2, "r1".to_owned())]);
        assert_eq!(cuts[2].makes, names(&["y"]));
        assert_eq!(cuts[2].asked(), ["y", "r2.g"]);
        assert_eq!(
            cuts[0].asked(),
            ["r1", "x.g"],
            "what is tapped and needed, once"
        );
        let tapped: usize = cuts.iter().map(|cut| cut.taps.len()).sum();
        assert_eq!(tapped, 5, "an input is no node's value");
    }

    #[test]
    fn graph_with_many_taps_at_one_node_is_cut_all_the_same() {
        let graph = GraphProto {
            node: vec![
                NodeProto::new("Split", &["x"], &["a", "b", "c"]),
                NodeProto::new("Sum", &["a", "b", "c"], &["y"]),
            ],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        };
        let taps = ["a", "b", "c", "y"].map(str::to_owned);
        let cuts = cut(&graph, &taps, 1);
        assert_eq!(cuts.iter().map(|cut| cut.taps.len()).sum::<usize>(), 4);
        assert_eq!(
            cuts.last().expect("segment").makes.last().expect("made"),
            "y"
        );
    }
}
