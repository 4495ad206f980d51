//! A TensorRT plan.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;

use super::bundle::component_text;
use super::folder::full;
use crate::bundle::{Bundle, Component, EngineSet, sha256_file};
use crate::cli::progress::bytes_bar;
use crate::cli::table::{Table, printable};
use crate::error::{Error, Result};
use crate::limits;

/// What is known of a plan. Only TensorRT can look into one, and only with a GPU; a plan in a
/// bundle is described by its manifest.
#[derive(Debug, Serialize)]
pub struct PlanReport {
    path: PathBuf,
    bytes: u64,
    sha256: String,
    /// Where the description comes from: `manifest`, `tensorrt`.
    source: Option<&'static str>,
    /// Flavour and version of TensorRT, for example `TensorRT-RTX 1.7.1`.
    engine: Option<String>,
    target: Option<String>,
    component: Option<Component>,
    /// Scratch memory of one execution context, if TensorRT was asked.
    device_memory_bytes: Option<i64>,
    /// Why nothing more is known.
    note: Option<String>,
    /// The plan is not the one that its bundle lists.
    pub problem: Option<String>,
}

/// Looks at a plan.
pub fn inspect(path: &Path) -> Result<PlanReport> {
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if meta.len() == 0 {
        return Err(Error::malformed(path, "the file is empty"));
    }
    let bar = bytes_bar("reading", meta.len());
    let file = sha256_file(path, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let file = file?;
    let mut report = PlanReport {
        path: path.to_path_buf(),
        bytes: file.bytes,
        sha256: file.sha256,
        source: None,
        engine: None,
        target: None,
        component: None,
        device_memory_bytes: None,
        note: None,
        problem: None,
    };
    match from_manifest(path)? {
        Some((set, component, sha256)) => {
            if sha256 != report.sha256 {
                report.problem = Some(full(&Error::Mismatch {
                    path: path.to_path_buf(),
                    what: "SHA-256",
                    expected: sha256,
                    actual: report.sha256.clone(),
                }));
            }
            report.source = Some("manifest");
            report.engine = Some(set.engine.to_string());
            report.target = Some(set.target.to_string());
            report.component = Some(component);
        }
        None => describe(path, &mut report),
    }
    Ok(report)
}

/// What the manifest of the bundle around a plan says of it, and the digest that it lists.
fn from_manifest(path: &Path) -> Result<Option<(EngineSet, Component, String)>> {
    let path = path.canonicalize().map_err(Error::io(path))?;
    let folders = path.ancestors().skip(1).take(limits::BUNDLE_DEPTH);
    let Some(dir) = folders.into_iter().find(|dir| Bundle::is_bundle(dir)) else {
        return Ok(None);
    };
    let manifest = Bundle::read_manifest(dir)?;
    let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy();
    let digest = manifest.files.iter().find(|f| f.path == name);
    let found = manifest.engines.iter().find_map(|set| {
        let component = set.components.iter().find(|c| c.file == name)?;
        Some((set.clone(), component.clone(), digest?.sha256.clone()))
    });
    Ok(found)
}

#[cfg(not(feature = "tensorrt"))]
fn describe(_: &Path, report: &mut PlanReport) {
    report.note = Some(
        "no bundle's manifest describes it, and this program was built without the feature \
         `tensorrt`"
            .to_owned(),
    );
}

/// Asks TensorRT, which needs a GPU for an answer.
#[cfg(feature = "tensorrt")]
fn describe(path: &Path, report: &mut PlanReport) {
    use crate::bundle::{Profile, ProfileInput, TensorInfo};
    use crate::trt::{IoMode, TensorDesc, describe_plan};

    let plan = match describe_plan(path) {
        Ok(plan) => plan,
        Err(error) => {
            report.note = Some(format!(
                "no bundle's manifest describes it, and only TensorRT with a GPU could: {}",
                full(&error)
            ));
            return;
        }
    };
    let tensor = |tensor: &TensorDesc| {
        let dtype = serde_json::to_value(&tensor.dtype).ok();
        let dtype = dtype.as_ref().and_then(|d| d.as_str()).unwrap_or("?");
        let dim = |&n: &i64| if n < 0 { "?".to_owned() } else { n.to_string() };
        TensorInfo::new(&tensor.name, dtype, tensor.shape.iter().map(dim))
    };
    let side = |mode| {
        plan.io
            .iter()
            .filter(move |t| t.mode == mode)
            .map(tensor)
            .collect()
    };
    let dims = |dims: &[i64]| dims.iter().map(|&n| n.max(0).unsigned_abs()).collect();
    let profiles = plan
        .profiles
        .iter()
        .enumerate()
        .map(|(index, profile)| Profile {
            name: index.to_string(),
            inputs: profile
                .dims
                .iter()
                .map(|range| ProfileInput {
                    name: range.input.clone(),
                    min: dims(&range.min),
                    opt: dims(&range.opt),
                    max: dims(&range.max),
                })
                .collect(),
        });
    report.source = Some("tensorrt");
    report.engine = Some(format!("{} {}", plan.flavour, plan.version));
    report.device_memory_bytes = Some(plan.device_memory_bytes);
    report.component = Some(Component {
        name: "plan".to_owned(),
        file: path.display().to_string(),
        inputs: side(IoMode::Input),
        outputs: side(IoMode::Output),
        profiles: profiles.collect(),
        graph: Vec::new(),
    });
}

impl PlanReport {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut facts = Table::default();
        if let Some(problem) = &self.problem {
            facts.row(["problem", problem]);
        }
        facts.row(["size", &HumanBytes(self.bytes).to_string()]);
        facts.row(["sha256", &self.sha256]);
        if let Some(engine) = &self.engine {
            facts.row(["engine", engine]);
        }
        if let Some(target) = &self.target {
            facts.row(["target", target]);
        }
        if let Some(bytes) = self.device_memory_bytes {
            facts.row([
                "scratch",
                &HumanBytes(bytes.max(0).unsigned_abs()).to_string(),
            ]);
        }
        let described = match self.source {
            Some("manifest") => "by the bundle's manifest",
            Some(_) => "by TensorRT",
            None => self.note.as_deref().unwrap_or("not"),
        };
        facts.row(["described", described]);
        // Only who built it can vouch for machine code.
        facts.row(["checked", "size and digest; not what is inside"]);
        let component = self.component.as_ref();
        format!(
            "{}: TensorRT plan\n{}{}",
            printable(&self.path.display().to_string()),
            facts.render(2),
            component.map(|c| component_text(c, 2)).unwrap_or_default(),
        )
    }
}
