//! Answers of real models are the same with drafts and without.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use serde_json::Value;
use trtvlm::backend::{Backend, CpuBackend, Prefill};
use trtvlm::decode::{
    Accepted, Draft, Drafter, Generated, Limits, MAX_DRAFT, Ngram, Outlook, Sampler, Sampling,
    Speculator, Strategy, generate,
};
use trtvlm::items::{read_items, spread};
use trtvlm::model::Model;
use trtvlm::onnx::proto::{NodeProto, ValueInfoProto};
use trtvlm::onnx::{DataType, OnnxModel};
use trtvlm::pipeline::{Ask, Pipeline, Positions, Pruning};
use trtvlm::preprocess::{Fit, Frame, Processor, Tiles};
use trtvlm::prune::{Keep, Pruner};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Proposes the answer that is known, with every third token wrong.
struct Told {
    answer: Vec<u32>,
    n_seen: usize,
}

impl Drafter for Told {
    fn name(&self) -> &'static str {
        "told"
    }
    fn begin(&mut self, _: &Prefill<'_>) -> trtvlm::Result<()> {
        self.n_seen = 0;
        Ok(())
    }
    fn accept(&mut self, tokens: Accepted<'_>) -> trtvlm::Result<()> {
        self.n_seen += tokens.ids.len();
        Ok(())
    }
    fn outlook(&mut self) -> Option<Outlook> {
        let n = self.answer.len().saturating_sub(self.n_seen);
        (n > 0).then_some(Outlook { n, class: 0 })
    }
    fn propose(&mut self, n: usize, draft: &mut Draft) -> trtvlm::Result<()> {
        let next = self.answer.iter().enumerate().skip(self.n_seen).take(n);
        draft
            .ids
            .extend(next.map(|(at, id)| id ^ u32::from(at % 3 == 2)));
        Ok(())
    }
    fn end(&mut self) {}
}

/// A folder of `tests/data/tiny` with PyTorch's greedy ids.
struct Tiny {
    name: String,
    model: Model,
    backend: CpuBackend,
    n_visual: usize,
    ids: Vec<u32>,
    golden: Vec<u32>,
}

impl Tiny {
    fn load(name: &str) -> Self {
        let dir = root().join("tests/data/tiny").join(name);
        let model = Model::load(&dir, Some("fp32")).expect(name);
        let file = std::fs::read(dir.join("golden.safetensors")).expect(name);
        let tensors = SafeTensors::deserialize(&file).expect("safetensors");
        let ids = |tensor: &str| -> Vec<u32> {
            let data = tensors.tensor(tensor).expect(tensor).data().chunks_exact(8);
            data.map(|b| i64::from_le_bytes(b.try_into().expect("8")) as u32)
                .collect()
        };
        let image = tensors.tensor("image").expect("image");
        let &[.., h, w, 3] = image.shape() else {
            panic!("{name}: {:?}", image.shape());
        };
        let frame = Frame::new(name, w, h, image.data()[..h * w * 3].to_vec()).expect("frame");
        let processor = Processor::load(&dir).expect("processor");
        let image = processor.run(&frame, Fit::Processor, Tiles::Count(1));
        let mut backend = CpuBackend::load(&model).expect(name);
        let n_visual = backend.encode(&image.expect("pixels")).expect(name);
        Self {
            name: name.to_owned(),
            n_visual,
            ids: ids("input_ids"),
            golden: ids("greedy_ids"),
            model,
            backend,
        }
    }

    /// Answers; if `gaps`, visual tokens were dropped and the others keep their positions.
    fn answer(&mut self, speculator: &mut Speculator, gaps: bool) -> Generated {
        let image_token = self.model.config.image_token_id;
        let mut slot = 0;
        let kept = |&(_, id): &(u32, u32)| {
            slot += usize::from(id == image_token);
            id != image_token || !gaps || slot % 3 == 1
        };
        let (positions, ids): (Vec<u32>, Vec<u32>) =
            (0..).zip(self.ids.iter().copied()).filter(kept).unzip();
        let visual: Vec<usize> = (0..self.n_visual)
            .filter(|at| !gaps || at % 3 == 0)
            .collect();
        let max_tokens = self.golden.len();
        let prompt = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &visual,
            image_token,
            reserve: max_tokens,
        };
        let limits = Limits {
            eos: &self.model.config.eos,
            max_tokens,
            deadline: None,
            cancel: None,
        };
        let mut sampler = Sampler::new(Sampling::default()).expect("greedy");
        let go_on = &mut |_| Ok(ControlFlow::Continue(()));
        let done = generate(
            &mut self.backend,
            &prompt,
            &mut sampler,
            &limits,
            speculator,
            go_on,
        );
        done.expect(&self.name)
    }
}

/// True if two answers are one, or part at a choice that is listed as a near tie.
fn agrees(drafted: &Generated, plain: &[u32]) -> bool {
    let parted = drafted.ids.iter().zip(plain).position(|(a, b)| a != b);
    match parted {
        None => drafted.ids.len() == plain.len(),
        Some(at) => {
            println!("parted at {at}: {:?}", drafted.speculation.near_ties);
            let ties = &drafted.speculation.near_ties;
            ties.iter().any(|tie| tie.index == at)
        }
    }
}

#[test]
fn drafts_leave_the_reference_ids_as_they_are() {
    let mut n_accepted: HashMap<&str, usize> = HashMap::new();
    for name in [
        "fastvlm-tiny-plain",
        "fastvlm-tiny-contrib",
        "fastvlm-tiny-contrib-sep",
        "smolvlm-tiny-plain",
        "smolvlm-tiny-contrib",
        "smolvlm-tiny-contrib-sep",
    ] {
        let mut tiny = Tiny::load(name);
        for gaps in [false, true] {
            let plain = tiny.answer(&mut Speculator::off(), gaps).ids;
            let golden = &tiny.golden[..plain.len().min(tiny.golden.len())];
            assert!(gaps || plain == golden, "{name}");
            let told = Told {
                answer: plain.clone(),
                n_seen: 0,
            };
            let mut speculator = Speculator::new(vec![Box::new(told), Box::new(Ngram::new())]);
            for drafter in ["told", "ngram"] {
                for n in 1..=MAX_DRAFT {
                    let strategy = Strategy::Always { drafter, n };
                    speculator.set(strategy).expect("a drafter");
                    let drafted = tiny.answer(&mut speculator, gaps);
                    let context = format!("{name}, gaps {gaps}, {drafter} {n}");
                    assert!(agrees(&drafted, &plain), "{context}: {drafted:?}");
                    *n_accepted.entry(drafter).or_default() += drafted.speculation.accepted;
                }
            }
        }
    }
    assert!(
        n_accepted["told"] > 100 && n_accepted["ngram"] > 100,
        "{n_accepted:?}"
    );
}

#[test]
fn drafts_leave_answers_of_the_demo_model_as_they_are() {
    let items = read_items(&root().join("calibration")).expect("items");
    let mut pipeline = Pipeline::open(&root().join("onnx/uav-tiny"), None).expect("demo model");
    let mut n_accepted: HashMap<&str, usize> = HashMap::new();
    for item in items {
        let frame = Frame::load(&item.image).expect("frame");
        let expected = item.token_ids.expect("ids");
        for (drafter, n) in [
            ("ngram", 1),
            ("ngram", 4),
            ("ngram", 8),
            ("head", 4),
            ("head", 8),
            ("early-exit", 4),
        ] {
            let ask = Ask {
                draft: Strategy::Always { drafter, n },
                ..Ask::default()
            };
            let answer = pipeline.ask(&frame, &item.prompt, &ask, &mut |_| {});
            let answer = answer.expect(&item.prompt);
            let context = format!("{}, {drafter}, drafts of {n}", item.origin);
            assert_eq!(answer.token_ids, expected, "{context}");
            assert_eq!(answer.speculation.switched_off, None, "{context}");
            *n_accepted.entry(drafter).or_default() += answer.speculation.accepted;
        }
    }
    // The second and third time each answer is one of the history.
    for drafter in ["ngram", "head", "early-exit"] {
        assert!(n_accepted[drafter] > 40, "{n_accepted:?}");
    }
}

#[test]
fn trained_drafts_of_the_demo_model_know_pruned_prompts_too() {
    let items = spread(read_items(&root().join("calibration")).expect("items"), 8);
    let mut pipeline = Pipeline::open(&root().join("onnx/uav-tiny"), None).expect("demo model");
    let mut totals: HashMap<&str, (usize, usize)> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let frame = Frame::load(&item.image).expect("frame");
        let pruning = Pruning {
            keep: Keep::new([0.25, 0.1][index % 2]).expect("share"),
            pruner: Some(Pruner::ALL[index % Pruner::ALL.len()]),
            positions: [Positions::Original, Positions::Packed][index / 2 % 2],
            ..Pruning::default()
        };
        let mut answer = |draft| {
            let ask = Ask {
                pruning,
                draft,
                ..Ask::default()
            };
            let answer = pipeline.ask(&frame, &item.prompt, &ask, &mut |_| {});
            answer.expect(&item.prompt)
        };
        let plain = answer(Strategy::Off);
        for drafter in ["ngram", "head", "early-exit"] {
            for n in [1, 4, MAX_DRAFT] {
                let drafted = answer(Strategy::Always { drafter, n });
                let report = &drafted.speculation;
                let context = format!("{}, {pruning:?}, {drafter} {n}", item.origin);
                assert_eq!(drafted.token_ids, plain.token_ids, "{context}: {report:?}");
                assert_eq!(report.switched_off, None, "{context}");
                let total = totals.entry(drafter).or_default();
                total.0 += report.proposed;
                total.1 += report.accepted;
            }
        }
    }
    println!("proposed and accepted: {totals:?}");
    // As likely as of whole prompts, about: what is dropped is no matter of the draft.
    for drafter in ["head", "early-exit"] {
        let (proposed, accepted) = totals[drafter];
        assert!(proposed > 60 && 2 * accepted > proposed, "{totals:?}");
    }
}

fn run(model: &Path, cache: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .arg("run")
        .arg(model)
        .args(["--prompt", "describe the scene", "--json", "--image"])
        .arg(root().join("calibration/images/0024.png"))
        .args(args)
        .env_remove("TRTVLM_LOG")
        .env("XDG_CACHE_HOME", cache)
        .output()
        .expect("run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.expect("entry").path()).collect()
}

#[test]
fn run_with_auto_measures_once_and_a_damaged_cache_is_no_error() {
    let cache = tempfile::tempdir().expect("dir");
    let model = root().join("onnx/uav-tiny");
    let ids = |out: &str| serde_json::from_str::<Value>(out).expect(out)["token_ids"].clone();
    let (code, plain, _) = run(&model, cache.path(), &["--draft", "off"]);
    assert_eq!(code, Some(0));
    let folder = cache.path().join("trtvlm/draft-costs");
    assert!(files(&folder).is_empty(), "nothing was to be measured");

    let (code, drafted, _) = run(&model, cache.path(), &[]);
    assert_eq!((code, ids(&drafted)), (Some(0), ids(&plain)));
    let [file] = &files(&folder)[..] else {
        panic!("one file");
    };
    let measured = std::fs::read(file).expect("costs");
    run(&model, cache.path(), &[]);
    assert_eq!(
        std::fs::read(file).expect("costs"),
        measured,
        "measured once"
    );

    std::fs::write(file, b"{\"passes_ms\":[").expect("damage");
    let (code, drafted, stderr) = run(&model, cache.path(), &[]);
    assert_eq!((code, ids(&drafted)), (Some(0), ids(&plain)), "{stderr}");
    assert_ne!(
        std::fs::read(file).expect("costs").len(),
        14,
        "measured again"
    );

    // A file where the cache should be.
    let (code, drafted, stderr) = run(&model, file, &[]);
    assert_eq!((code, ids(&drafted)), (Some(0), ids(&plain)), "{stderr}");
}

#[test]
fn run_with_a_drafter_that_the_model_has_not_is_refused() {
    let cache = tempfile::tempdir().expect("dir");
    let model = root().join("tests/data/tiny/fastvlm-tiny-plain");
    for drafter in ["head", "early-exit"] {
        let (code, stdout, stderr) = run(&model, cache.path(), &["--draft", drafter]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        let expected =
            format!("error: the drafter `{drafter}` is not available: this model has ngram");
        assert!(stderr.contains(&expected), "{stderr}");
    }
}

/// The demo model, with a head of its own that `change` has changed.
fn demo_with_head(dir: &Path, change: impl Fn(&mut OnnxModel)) {
    let source = root().join("onnx/uav-tiny");
    for entry in files(&source) {
        let name = entry.file_name().expect("name");
        if name != "drafts" {
            std::os::unix::fs::symlink(&entry, dir.join(name)).expect("link");
        }
    }
    let drafts = dir.join("drafts");
    std::fs::create_dir(&drafts).expect("dir");
    let mut graph = OnnxModel::load(&source.join("drafts/head.onnx")).expect("head");
    change(&mut graph);
    let path = drafts.join("head.onnx");
    graph.save(&path).expect("save");
    let text = std::fs::read(source.join("drafts/head.json")).expect("description");
    let mut spec: Value = serde_json::from_slice(&text).expect("JSON");
    let digest = trtvlm::digest::sha256_file(&path, |_| {}).expect("digest");
    spec["graph_sha256"] = digest.sha256.into();
    std::fs::write(drafts.join("head.json"), spec.to_string()).expect("write");
}

#[test]
fn draft_model_that_returns_nan_is_off_for_the_rest_of_the_answer() {
    let dir = tempfile::tempdir().expect("dir");
    demo_with_head(dir.path(), |graph| {
        for tensor in &mut graph.graph_mut().initializer {
            if let (Ok(DataType::F16), Some(raw)) = (tensor.dtype(), &mut tensor.raw_data) {
                // Every number becomes NaN.
                *raw = [0x00, 0x7e].repeat(raw.len() / 2).into();
            }
        }
    });
    let ids = |out: &str| serde_json::from_str::<Value>(out).expect(out)["token_ids"].clone();
    let (code, plain, _) = run(dir.path(), dir.path(), &["--draft", "off"]);
    assert_eq!(code, Some(0));
    let (code, drafted, stderr) = run(dir.path(), dir.path(), &["--draft", "head"]);
    assert_eq!((code, ids(&drafted)), (Some(0), ids(&plain)), "{stderr}");
    let answer: Value = serde_json::from_str(&drafted).expect("JSON");
    let speculation = &answer["speculation"];
    let reason = speculation["switched_off"].as_str().expect("off");
    assert!(reason.contains("logits that are not numbers"), "{reason}");
    assert_eq!(
        (&speculation["proposed"], &speculation["draft"]),
        (&0.into(), &"off".into())
    );
    let warning = "the rest of the answer comes without drafts";
    assert!(stderr.contains(warning), "{stderr}");
}

#[test]
fn model_that_quantizes_all_rows_together_is_not_drafted() {
    let source = root().join("tests/data/tiny/fastvlm-tiny-plain");
    let dir = tempfile::tempdir().expect("dir");
    std::fs::create_dir(dir.path().join("onnx")).expect("dir");
    for entry in files(&source)
        .into_iter()
        .chain(files(&source.join("onnx")))
    {
        if entry.is_file() {
            let name = entry.strip_prefix(&source).expect("inside");
            std::fs::copy(&entry, dir.path().join(name)).expect("copy");
        }
    }
    let decoder = dir.path().join("onnx/decoder_model_merged.onnx");
    let mut graph = OnnxModel::load(&decoder).expect("decoder");
    let node = NodeProto {
        op_type: "DynamicQuantizeLinear".to_owned(),
        name: "scale_of_all_rows".to_owned(),
        input: vec!["inputs_embeds".to_owned()],
        output: ["q", "scale", "zero"].map(str::to_owned).to_vec(),
        ..NodeProto::default()
    };
    graph.graph_mut().node.insert(0, node);
    // Else nobody needs it, and it goes.
    graph.graph_mut().output.push(ValueInfoProto {
        name: "scale".to_owned(),
        ..ValueInfoProto::default()
    });
    graph.save(&decoder).expect("save");

    let cache = tempfile::tempdir().expect("dir");
    let (code, _, stderr) = run(dir.path(), cache.path(), &["--draft", "ngram"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("error: drafting is not available"),
        "{stderr}"
    );
    let args = ["--draft", "auto", "--max-tokens", "8"];
    let (code, stdout, stderr) = run(dir.path(), cache.path(), &args);
    assert_eq!(code, Some(0), "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(answer["speculation"]["proposed"], 0);
    assert!(files(&cache.path().join("trtvlm/draft-costs")).is_empty());
}
