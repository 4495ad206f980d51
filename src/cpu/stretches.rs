//! Running a graph a stretch at a time, with values that the caller holds between them.
//!
//! What is between two stretches can come from somewhere else: from the same stretch of another
//! graph that computes it less precisely, for example.

use std::collections::{HashMap, HashSet};

use rten::{Value, ValueOrView};
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::cut::{Cut, expose};
use super::session::Session;
use crate::error::{Error, Result};
use crate::onnx::OnnxModel;

/// Values by name.
#[derive(Default)]
pub struct Values(HashMap<String, Value>);

/// A loaded graph and where it is cut.
pub struct Stretches {
    session: Session,
    cuts: Vec<Cut>,
    inputs: HashSet<String>,
    outputs: Vec<String>,
    /// For each stretch: what it or a later one reads.
    needed: Vec<HashSet<String>>,
}

impl Values {
    /// Adds a tensor of floats; `data` has as many elements as `shape` says.
    ///
    /// # Errors
    /// [`Error::Shape`] if it does not.
    pub fn insert_f32(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> Result<()> {
        let tensor = Tensor::try_from_data(shape, data).map_err(|_| misshapen(name, shape))?;
        self.0.insert(name.to_owned(), tensor.into());
        Ok(())
    }

    /// Adds a tensor of integers; `data` has as many elements as `shape` says.
    ///
    /// # Errors
    /// [`Error::Shape`] if it does not.
    pub fn insert_i32(&mut self, name: &str, shape: &[usize], data: Vec<i32>) -> Result<()> {
        let tensor = Tensor::try_from_data(shape, data).map_err(|_| misshapen(name, shape))?;
        self.0.insert(name.to_owned(), tensor.into());
        Ok(())
    }

    /// Shape and elements of a tensor of floats; `None` if there is none of this name.
    pub fn f32(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let Value::FloatTensor(tensor) = self.0.get(name)? else {
            return None;
        };
        Some((tensor.shape().to_vec(), tensor.to_vec()))
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Values) {
        self.0.extend(other.0);
    }
}

impl Stretches {
    /// Loads a graph that has, or whose original has, been cut so; its nodes stand in topological
    /// order. Every value of it is computed as the graph says: nothing is fused.
    ///
    /// # Errors
    /// [`Error::Cpu`] if the engine refuses the graph.
    pub fn load(mut model: OnnxModel, cuts: Vec<Cut>) -> Result<Self> {
        let inputs = model.graph().inputs().into_iter().map(|i| i.name).collect();
        let outputs = model
            .graph()
            .output
            .iter()
            .map(|o| o.name.clone())
            .collect();
        expose(model.graph_mut(), cuts.iter().flat_map(Cut::asked));
        let mut needed: Vec<HashSet<String>> = Vec::with_capacity(cuts.len());
        for cut in cuts.iter().rev() {
            let mut all = needed.last().cloned().unwrap_or_default();
            all.extend(cut.reads.iter().cloned());
            needed.push(all);
        }
        needed.reverse();
        Ok(Self {
            session: Session::load_plain(&model)?,
            cuts,
            inputs,
            outputs,
            needed,
        })
    }

    /// Number of stretches.
    pub fn len(&self) -> usize {
        self.cuts.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.cuts.is_empty()
    }

    /// Where the graph is cut.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// Runs one stretch; returns what it makes.
    ///
    /// # Errors
    /// [`Error::Cpu`] naming the graph and, from the engine, the node.
    pub fn run(&self, index: usize, values: &Values) -> Result<Values> {
        let cut = &self.cuts[index];
        self.compute(cut.reads.iter(), cut.asked(), values, None)
    }

    /// Runs everything from stretch `index` to the graph's outputs; what is in `instead` is taken
    /// before what is in `values`.
    ///
    /// # Errors
    /// As [`Stretches::run`].
    pub fn run_from(&self, index: usize, values: &Values, instead: &Values) -> Result<Values> {
        let none = HashSet::new();
        let reads = self.needed.get(index).unwrap_or(&none);
        let outputs = self.outputs.iter().collect();
        self.compute(reads.iter(), outputs, values, Some(instead))
    }

    /// Forgets what no stretch from `index` on reads.
    pub fn retain(&self, index: usize, values: &mut Values) {
        let needed = self.needed.get(index);
        let is_needed = |name: &String| {
            needed.is_some_and(|needed| needed.contains(name))
                || self.inputs.contains(name)
                || self.outputs.contains(name)
        };
        values.0.retain(|name, _| is_needed(name));
    }

    fn compute<'a>(
        &self,
        reads: impl Iterator<Item = &'a String>,
        makes: Vec<&String>,
        values: &Values,
        instead: Option<&Values>,
    ) -> Result<Values> {
        let find = |name: &String| {
            let other = instead.and_then(|instead| instead.0.get(name));
            other.or_else(|| values.0.get(name))
        };
        let mut given = Vec::new();
        for name in reads {
            if let Some(value) = find(name) {
                given.push((self.handle(name)?, ValueOrView::from(value.as_view())));
            }
        }
        let mut made = HashMap::new();
        // A later value of the graph is never taken for one that has yet to be computed, but an
        // output may have been made already by an earlier stretch.
        let mut wanted = Vec::new();
        for name in makes {
            match instead.is_some().then(|| find(name)).flatten() {
                Some(value) => {
                    made.insert(name.clone(), value.clone());
                }
                None => wanted.push(name),
            }
        }
        let handles: Vec<_> = wanted
            .iter()
            .map(|name| self.session.output(name))
            .collect::<Result<_>>()?;
        if !handles.is_empty() {
            let computed = self.session.run(given, &handles)?;
            made.extend(wanted.into_iter().cloned().zip(computed));
        }
        Ok(Values(made))
    }

    fn handle(&self, name: &str) -> Result<rten::NodeId> {
        match self.inputs.contains(name) {
            true => self.session.input(name),
            false => self.session.output(name),
        }
    }
}

fn misshapen(name: &str, shape: &[usize]) -> Error {
    Error::Shape {
        name: name.to_owned(),
        expected: format!("{shape:?}"),
        actual: "another number of elements".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message;

    use super::*;
    use crate::cpu::cut;
    use crate::onnx::DataType::F32;
    use crate::onnx::ValueType;
    use crate::onnx::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    };

    /// `y = ((x * k + 1) * k + 1) + x`: the input is read at the end, too.
    fn model(k: f32) -> OnnxModel {
        let value = |name: &str| {
            ValueInfoProto::from(&ValueType {
                name: name.to_owned(),
                dtype: Some(F32),
                dims: None,
            })
        };
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: Some(17),
            }],
            graph: Some(GraphProto {
                node: vec![
                    NodeProto::new("Mul", &["x", "k"], &["a"]),
                    NodeProto::new("Add", &["a", "one"], &["b"]),
                    NodeProto::new("Mul", &["b", "k"], &["c"]),
                    NodeProto::new("Add", &["c", "one"], &["d"]),
                    NodeProto::new("Add", &["d", "x"], &["y"]),
                ],
                initializer: vec![
                    TensorProto::from_f32("k", &[], &[k]),
                    TensorProto::from_f32("one", &[], &[1.0]),
                ],
                input: vec![value("x")],
                output: vec![value("y")],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        OnnxModel::parse(Path::new("sum.onnx"), proto.encode_to_vec().into()).expect("parse")
    }

    #[test]
    fn stretches_of_two_graphs_can_be_mixed() {
        let taps = ["a", "c"].map(str::to_owned);
        let cuts = cut(model(2.0).graph(), &taps, 1);
        assert_eq!(cuts.len(), 2);
        let [exact, other] =
            [2.0, 3.0].map(|k| Stretches::load(model(k), cuts.clone()).expect("load"));
        let read = |values: &Values, name: &str| values.f32(name).expect("floats").1;
        let mut values = Values::default();
        values
            .insert_f32("x", &[2], vec![1.0, 10.0])
            .expect("shape");
        let nothing = Values::default();
        let whole = exact.run_from(0, &values, &nothing).expect("run");
        assert_eq!(read(&whole, "y"), [8.0, 53.0]);

        // The first stretch with 3 for 2, the rest as it is.
        let mixed = exact.run_from(1, &values, &other.run(0, &values).expect("run"));
        assert_eq!(read(&mixed.expect("run"), "y"), [10.0, 73.0]);

        let made = exact.run(0, &values).expect("run");
        values.extend(made);
        exact.retain(1, &mut values);
        let last = other.run(1, &values).expect("run");
        assert_eq!(read(&last, "y"), [11.0, 74.0]);
        // Behind the last stretch there is nothing to compute.
        let end = exact.run_from(2, &values, &last).expect("nothing to do");
        assert_eq!(read(&end, "y"), [11.0, 74.0]);
        assert!(values.insert_f32("x", &[3], vec![1.0]).is_err());
    }
}
