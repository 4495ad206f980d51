//! How answers keep a deadline: `deadlines MODEL IMAGE [DEADLINE_MS [COUNT]]` asks COUNT times and prints when answers were
//! there, counted from the deadline, beside the longest pass.

use std::path::Path;
use std::time::{Duration, Instant};

use trtvlm::decode::Stop;
use trtvlm::pipeline::{Ask, Pipeline};
use trtvlm::preprocess::Frame;

/// Upper ends of the classes, in milliseconds after the deadline.
const CLASSES: [f64; 11] = [
    -50.0,
    -20.0,
    -10.0,
    -5.0,
    -2.0,
    -1.0,
    0.0,
    1.0,
    5.0,
    20.0,
    f64::INFINITY,
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, image, rest @ ..] = args.as_slice() else {
        anyhow::bail!("usage: deadlines MODEL IMAGE [DEADLINE_MS [COUNT]]");
    };
    let number = |at: usize, default: u64| rest.get(at).map_or(Ok(default), |text| text.parse());
    let deadline = Duration::from_millis(number(0, 100)?);
    let count = number(1, 1000)?;
    let mut pipeline = Pipeline::open(Path::new(model), None)?;
    let frame = Frame::load(Path::new(image))?;
    let question = "describe the scene";
    for _ in 0..10 {
        pipeline.answer(&frame, question, &Ask::default(), &mut |_| {})?;
    }
    let mut classes = [0usize; CLASSES.len()];
    let (mut stops, mut n_late, mut latest, mut longest) = ([0usize; 2], 0, f64::MIN, 0.0f64);
    for _ in 0..count {
        let at = Instant::now() + deadline;
        let ask = Ask {
            deadline: Some(at),
            ..Ask::default()
        };
        let answer = pipeline.answer(&frame, question, &ask, &mut |_| {})?;
        let now = Instant::now();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let after = ms(now.saturating_duration_since(at)) - ms(at.saturating_duration_since(now));
        let class = CLASSES.iter().position(|&end| after <= end);
        classes[class.unwrap_or(CLASSES.len() - 1)] += 1;
        let times = &answer.timings_ms;
        let step = times.decode / answer.speculation.steps.max(1) as f64;
        longest = longest.max(times.vision).max(times.prefill).max(step);
        stops[usize::from(answer.stop == Stop::Deadline)] += 1;
        n_late += usize::from(after > 0.0);
        latest = latest.max(after);
    }
    println!("deadline {} ms, {count} answers", deadline.as_millis());
    let mut from = f64::NEG_INFINITY;
    for (end, n) in CLASSES.iter().zip(classes) {
        println!("{from:>6} to {end:>4} ms after the deadline: {n}");
        from = *end;
    }
    println!("whole {}, cut {}, late {n_late}", stops[0], stops[1]);
    println!("latest {latest:.2} ms after the deadline; longest pass {longest:.2} ms");
    Ok(())
}
