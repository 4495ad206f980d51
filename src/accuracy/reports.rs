//! What a proof leaves in a bundle.

use serde::Serialize;

use super::gate::Proof;
use super::plot::plot;
use crate::build::Proven;
use crate::bundle::AccuracyInfo;
use crate::error::{Error, Result};

impl Proof {
    /// The files of the bundle's `reports/`, and what the manifest says; `model` is its name.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a number has no form in JSON.
    pub fn into_reports(self, model: &str) -> Result<Proven> {
        let left_out = self.gate.left_out();
        let mut reports = vec![("accuracy.json".to_owned(), json(&self.gate)?)];
        if let Some(found) = &self.sensitivity {
            reports.push(("sensitivity.json".to_owned(), json(found)?));
            let svg = plot(found, model, &left_out);
            reports.push(("sensitivity.svg".to_owned(), svg.into_bytes()));
        }
        Ok(Proven {
            accuracy: AccuracyInfo {
                max_drop: self.gate.max_drop,
                items: self.gate.after.of,
                before: self.gate.before.share,
                after: self.gate.after.share,
                expected: self.gate.expected_after,
                kept: left_out.whole.into_values().flatten().collect(),
                weights_only: left_out.activations.into_values().flatten().collect(),
                engine: self.gate.engine,
            },
            reports,
        })
    }
}

fn json(report: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(report)
        .map_err(|e| Error::malformed("report", format!("cannot be written: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}
