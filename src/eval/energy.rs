//! What the machine says that it has used of energy.
//!
//! | source | where | what |
//! |--------|-------|------|
//! | INA3221 (Jetson) | `class/hwmon/*/name` is `ina3221` | volts and amperes of the board's rails, added up over time |
//! | RAPL (Intel, AMD) | `class/powercap/intel-rapl:N` | a counter of each processor package |
//!
//! Both see the whole board or package: what else runs there, and what an idle machine uses, is in
//! the figure. A GPU's own counter is none of these.

use crate::sync::lock;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where Linux shows devices.
const SYSFS: &str = "/sys";

/// How often a sensor of power is read: its own averaging is no faster.
const PERIOD: Duration = Duration::from_millis(20);

/// Rail of a Jetson module that feeds all others.
const WHOLE_BOARD: &str = "VDD_IN";

/// Measures the energy of pieces of work.
pub struct Meter {
    source: Source,
}

enum Source {
    Rapl(Vec<Zone>),
    Rails(Sampler),
    None(String),
}

/// What a meter found.
#[derive(Debug, Clone, PartialEq)]
pub enum Watched {
    /// Joules, and where they come from.
    Joules(f64, &'static str),
    /// Why there are none.
    NotAvailable(String),
}

impl Meter {
    /// A meter on whatever this machine has.
    pub fn open() -> Self {
        Self::open_at(Path::new(SYSFS))
    }

    fn open_at(sysfs: &Path) -> Self {
        let rails = rails(sysfs);
        if !rails.is_empty() {
            return Self {
                source: match Sampler::start(rails) {
                    Ok(sampler) => Source::Rails(sampler),
                    Err(reason) => Source::None(reason),
                },
            };
        }
        let zones = zones(sysfs);
        if zones.is_empty() {
            let reason = "this machine has neither INA3221 sensors nor RAPL counters";
            return Self {
                source: Source::None(reason.to_owned()),
            };
        }
        let source = match zones.iter().map(Zone::read).collect::<Result<Vec<_>, _>>() {
            Ok(_) => Source::Rapl(zones),
            Err(reason) => Source::None(reason),
        };
        Self { source }
    }

    /// Does `work` and adds what it used to `total`, in joules.
    pub fn measure<T>(&self, total: &mut f64, work: impl FnOnce() -> T) -> T {
        let before = self.counters();
        let done = work();
        let after = self.counters();
        *total += self.used(&before, &after);
        done
    }

    /// What `joules`, the sum of all measurements, means.
    pub fn says(&self, joules: f64) -> Watched {
        match &self.source {
            Source::Rapl(_) => Watched::Joules(joules, "RAPL, processor packages"),
            Source::Rails(sampler) => Watched::Joules(joules, sampler.what),
            Source::None(reason) => Watched::NotAvailable(reason.clone()),
        }
    }

    /// Every counter of the source, in joules.
    fn counters(&self) -> Vec<f64> {
        match &self.source {
            Source::Rapl(zones) => zones.iter().map(|z| z.read().unwrap_or(f64::NAN)).collect(),
            Source::Rails(sampler) => vec![sampler.joules()],
            Source::None(_) => Vec::new(),
        }
    }

    fn used(&self, before: &[f64], after: &[f64]) -> f64 {
        let pairs = before.iter().zip(after);
        match &self.source {
            Source::Rapl(zones) => {
                let used = zones
                    .iter()
                    .zip(pairs)
                    .map(|(zone, (a, b))| zone.used(*a, *b));
                used.sum()
            }
            _ => pairs.map(|(a, b)| b - a).sum(),
        }
    }
}

/// A counter of microjoules that starts again from 0 above `range`.
struct Zone {
    counter: PathBuf,
    range: f64,
}

impl Zone {
    /// Joules since some time.
    fn read(&self) -> Result<f64, String> {
        let text = fs::read_to_string(&self.counter)
            .map_err(|e| format!("{}: {e}", self.counter.display()))?;
        let microjoules = text.trim().parse::<u64>();
        let microjoules =
            microjoules.map_err(|_| format!("{} has no number", self.counter.display()))?;
        Ok(microjoules as f64 / 1e6)
    }

    /// From one reading to the next; 0 where one failed.
    fn used(&self, before: f64, after: f64) -> f64 {
        match after - before {
            used if used.is_nan() => 0.0,
            used if used < 0.0 => used + self.range,
            used => used,
        }
    }
}

/// The processor packages; their parts, and the sum of the platform, would count twice.
fn zones(sysfs: &Path) -> Vec<Zone> {
    let packages = entries(&sysfs.join("class/powercap"))
        .into_iter()
        .filter(|zone| {
            let name = fs::read_to_string(zone.join("name")).unwrap_or_default();
            let own = zone.file_name().and_then(|n| n.to_str()).unwrap_or("");
            own.starts_with("intel-rapl:") && name.trim().starts_with("package-")
        });
    let zone = |path: PathBuf| Zone {
        range: number(&path.join("max_energy_range_uj")).unwrap_or(0.0) / 1e6,
        counter: path.join("energy_uj"),
    };
    packages.map(zone).collect()
}

/// Voltage (mV) and current (mA) of one rail.
struct Rail {
    name: String,
    volts: PathBuf,
    amperes: PathBuf,
}

impl Rail {
    fn watts(&self) -> Option<f64> {
        Some(number(&self.volts)? * number(&self.amperes)? / 1e6)
    }
}

/// The rail of the whole board if it is measured, else all that are.
fn rails(sysfs: &Path) -> Vec<Rail> {
    let mut rails = Vec::new();
    for chip in entries(&sysfs.join("class/hwmon")) {
        let name = fs::read_to_string(chip.join("name")).unwrap_or_default();
        if name.trim() != "ina3221" {
            continue;
        }
        // A chip has three channels; sums of channels, which newer kernels add, have no current.
        for channel in 1..=3 {
            let label = chip.join(format!("in{channel}_label"));
            let rail = Rail {
                name: fs::read_to_string(label)
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
                volts: chip.join(format!("in{channel}_input")),
                amperes: chip.join(format!("curr{channel}_input")),
            };
            if rail.watts().is_some() {
                rails.push(rail);
            }
        }
    }
    match rails.iter().position(|rail| rail.name == WHOLE_BOARD) {
        Some(whole) => vec![rails.swap_remove(whole)],
        None => rails,
    }
}

/// Adds up the power of rails from a thread of its own.
struct Sampler {
    joules: Arc<Mutex<f64>>,
    what: &'static str,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    fn start(rails: Vec<Rail>) -> Result<Self, String> {
        let what = match rails.iter().any(|rail| rail.name == WHOLE_BOARD) {
            true => "INA3221, whole board (VDD_IN)",
            false => "INA3221, all measured rails",
        };
        let joules = Arc::new(Mutex::new(0.0));
        let (stop, stopped) = channel::<()>();
        let total = Arc::clone(&joules);
        let sample = move || {
            let mut last = Instant::now();
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let watts: f64 = rails.iter().filter_map(Rail::watts).sum();
                let now = Instant::now();
                let seconds = now.duration_since(last).as_secs_f64();
                *lock(&total) += watts * seconds;
                last = now;
            }
        };
        let thread = std::thread::Builder::new()
            .name("power".to_owned())
            .spawn(sample)
            .map_err(|e| format!("no thread for the INA3221 sensors: {e}"))?;
        Ok(Self {
            joules,
            what,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn joules(&self) -> f64 {
        *lock(&self.joules)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The entries of a folder, by name; none if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

fn number(path: &Path) -> Option<f64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("folder")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    #[test]
    fn meter_without_sensors_says_why() {
        let dir = tempfile::tempdir().expect("dir");
        let says = |root: &Path| Meter::open_at(root).says(0.0);
        let Watched::NotAvailable(reason) = says(dir.path()) else {
            panic!("there is nothing")
        };
        assert!(
            reason.contains("INA3221") && reason.contains("RAPL"),
            "{reason}"
        );
        // Counters that only root may read are folders here, which nobody can read as files.
        let zone = "class/powercap/intel-rapl:0";
        write(dir.path(), &format!("{zone}/name"), "package-0\n");
        fs::create_dir(dir.path().join(zone).join("energy_uj")).expect("mkdir");
        let Watched::NotAvailable(reason) = says(dir.path()) else {
            panic!("it cannot be read")
        };
        assert!(reason.contains("energy_uj"), "{reason}");
    }

    #[test]
    fn packages_are_added_up_across_the_end_of_their_counters() {
        let dir = tempfile::tempdir().expect("dir");
        let root = dir.path();
        for (zone, name, start) in [
            ("intel-rapl:0", "package-0", "1000000"),
            ("intel-rapl:1", "package-1", "9000000"),
            ("intel-rapl:0:0", "core", "5"),
            ("intel-rapl:2", "psys", "5"),
        ] {
            let zone = format!("class/powercap/{zone}");
            write(root, &format!("{zone}/name"), name);
            write(root, &format!("{zone}/energy_uj"), start);
            write(root, &format!("{zone}/max_energy_range_uj"), "10000000");
        }
        let meter = Meter::open_at(root);
        let mut total = 0.5;
        meter.measure(&mut total, || {
            for (zone, now) in [(0, "3500000"), (1, "1000000")] {
                write(
                    root,
                    &format!("class/powercap/intel-rapl:{zone}/energy_uj"),
                    now,
                );
            }
            write(root, "class/powercap/intel-rapl:2/energy_uj", "90000000");
        });
        let Watched::Joules(joules, source) = meter.says(total) else {
            panic!("two packages")
        };
        // 2.5 J of the first; 1 J to the end and 1 J from 0 of the second.
        assert!((joules - 5.0).abs() < 1e-9, "{joules}");
        assert!(source.contains("RAPL"));
    }

    #[test]
    fn board_rail_is_taken_alone_and_its_power_added_up() {
        let dir = tempfile::tempdir().expect("dir");
        let chip = "class/hwmon/hwmon3";
        write(dir.path(), &format!("{chip}/name"), "ina3221\n");
        for (channel, label, millivolts, milliamperes) in [
            (1, "VDD_IN", "5000", "2000"),
            (2, "VDD_CPU_GPU_CV", "5000", "800"),
        ] {
            write(dir.path(), &format!("{chip}/in{channel}_label"), label);
            write(dir.path(), &format!("{chip}/in{channel}_input"), millivolts);
            write(
                dir.path(),
                &format!("{chip}/curr{channel}_input"),
                milliamperes,
            );
        }
        write(dir.path(), "class/hwmon/hwmon1/name", "coretemp");
        let found = rails(dir.path());
        let found: Vec<_> = found.iter().map(|r| (r.name.as_str(), r.watts())).collect();
        assert_eq!(found, [("VDD_IN", Some(10.0))]);
        let (mut total, start) = (0.0, Instant::now());
        let meter = Meter::open_at(dir.path());
        meter.measure(&mut total, || {
            while meter.counters()[0] == 0.0 {
                std::thread::yield_now();
            }
        });
        assert!(
            total > 0.0 && total <= 10.0 * start.elapsed().as_secs_f64(),
            "{total}"
        );
        assert_eq!(
            meter.says(total),
            Watched::Joules(total, "INA3221, whole board (VDD_IN)")
        );
        fs::remove_file(dir.path().join(format!("{chip}/in1_label"))).expect("remove");
        assert_eq!(rails(dir.path()).len(), 2, "no rail of the whole board");
    }
}
