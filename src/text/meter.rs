//! The weight of a template's values.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use minijinja::value::{Kwargs, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::limits;
use crate::sync::lock;

/// Function that weighs its argument and gives it back. Its name, as those of the others, is no
/// identifier: no template can call or shadow it.
pub(super) const CHECK: &str = "#check";
/// Function that weighs the product of a pair, and gives the pair back.
pub(super) const FIT: &str = "#fit";
/// Function of a value, a namespace and a name: what an assignment to `namespace.name` does.
pub(super) const SET: &str = "#set";

/// Weight of a value beside its text: at least the memory that it takes in a list or map.
const NODE: u64 = 64;

/// Counts what one rendering computes and writes, in bytes.
///
/// A value weighs as much as it would if nothing of it were shared, so that a list of lists of
/// the same list is found out before something walks through it. One value may weigh
/// [`limits::TEMPLATE_VALUE_BYTES`], and all that were weighed [`limits::TEMPLATE_WORK_BYTES`],
/// which bounds the memory and, with the number of instructions, the time.
#[derive(Debug, Default)]
pub(super) struct Meter {
    work: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// Adds the functions and the bounded filters to an environment.
    pub fn install(self: &Arc<Self>, environment: &mut Environment<'static>) {
        let add = |environment: &mut Environment<'static>, name, kind| {
            let meter = Arc::clone(self);
            environment.add_global(name, Value::from_object(Function { meter, kind }));
        };
        add(environment, CHECK, Kind::Check);
        add(environment, FIT, Kind::Fit);
        add(environment, SET, Kind::Set);
        environment.add_function("namespace", namespace);

        let meter = Arc::clone(self);
        let inner = Value::from_function(filters::replace);
        environment.add_filter(
            "replace",
            move |state: &mut State, args: Rest, named: Kwargs| {
                let args = all(args, named);
                meter.replace(&args)?;
                inner.call(state, &args)
            },
        );
        let meter = Arc::clone(self);
        let inner = Value::from_function(filters::join);
        environment.add_filter(
            "join",
            move |state: &mut State, args: Rest, named: Kwargs| {
                let args = all(args, named);
                meter.join(args.first(), args.get(1))?;
                inner.call(state, &args)
            },
        );
        let meter = Arc::clone(self);
        let inner = Value::from_function(filters::indent);
        environment.add_filter(
            "indent",
            move |state: &mut State, args: Rest, named: Kwargs| {
                let args = all(args, named);
                let lines = args
                    .first()
                    .map_or(0, |v| text(v).matches('\n').count() + 1);
                meter.spend((lines as u64).saturating_mul(largest(&args).max(4)))?;
                inner.call(state, &args)
            },
        );
        let meter = Arc::clone(self);
        let inner = Value::from_function(filters::tojson);
        environment.add_filter(
            "tojson",
            move |state: &mut State, args: Rest, named: Kwargs| {
                let args = all(args, named);
                let weight = args.first().map_or(Ok(0), weigh)?;
                // Every element on a line of its own, as deep as values go.
                let indent = largest(&args).saturating_mul(limits::TEMPLATE_DEPTH as u64);
                meter.spend(
                    (weight / NODE)
                        .saturating_mul(indent)
                        .saturating_add(weight),
                )?;
                inner.call(state, &args)
            },
        );
        let meter = Arc::clone(self);
        environment.set_unknown_method_callback(move |state, value, method, args| {
            match (value.kind(), method) {
                // A width could be any.
                (ValueKind::String, "format") if text(value).contains(':') => {
                    return Err(ErrorKind::UnknownMethod.into());
                }
                (ValueKind::String, "format") => meter.format(&text(value), args)?,
                (ValueKind::String, "replace") => {
                    let all: Vec<Value> = [value].into_iter().chain(args).cloned().collect();
                    meter.replace(&all)?;
                }
                (ValueKind::String, "join") => meter.join(args.first(), Some(value))?,
                _ => {}
            }
            unknown_method_callback(state, value, method, args)
        });
    }

    /// Counts what is about to be written.
    pub fn write(&self, value: &Value) -> Result<(), Error> {
        let weight = self.weigh(value)?;
        let bytes = value.as_str().map_or(weight, |text| text.len() as u64);
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written > limits::TEMPLATE_BYTES as u64 {
            return Err(refused(format!(
                "it writes more than {} bytes",
                limits::TEMPLATE_BYTES
            )));
        }
        Ok(())
    }

    /// Weighs a value and gives it back; what would be computed while it is read becomes a list.
    fn check(&self, value: &Value) -> Result<Value, Error> {
        if value.kind() != ValueKind::Iterable {
            self.weigh(value)?;
            return Ok(value.clone());
        }
        let mut items = Vec::new();
        let mut weight = NODE;
        for item in value.try_iter()? {
            weight += weigh(&item)?;
            self.fits(weight)?;
            items.push(item);
        }
        self.spend(weight)?;
        Ok(Value::from(items))
    }

    fn weigh(&self, value: &Value) -> Result<u64, Error> {
        let weight = weigh(value)?;
        self.spend(weight)?;
        Ok(weight)
    }

    fn spend(&self, weight: u64) -> Result<(), Error> {
        self.fits(weight)?;
        let work = self.work.fetch_add(weight, Ordering::Relaxed) + weight;
        match work > limits::TEMPLATE_WORK_BYTES {
            true => Err(refused(format!(
                "it computes more than {} bytes",
                limits::TEMPLATE_WORK_BYTES
            ))),
            false => Ok(()),
        }
    }

    fn fits(&self, weight: u64) -> Result<(), Error> {
        match weight > limits::TEMPLATE_VALUE_BYTES {
            true => Err(too_heavy()),
            false => Ok(()),
        }
    }

    /// Weighs a product of text or a list with a number.
    fn fit(&self, pair: &Value) -> Result<(), Error> {
        let (a, b) = (pair.get_item_by_index(0)?, pair.get_item_by_index(1)?);
        let plain = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
        let (thing, count) = match (plain(&a), plain(&b)) {
            (false, true) => (a, b),
            (true, false) => (b, a),
            // Numbers, or nothing that can be multiplied.
            _ => return Ok(()),
        };
        let count = count.as_usize().unwrap_or(0) as u64;
        let weight = match thing.as_str() {
            Some(text) => (text.len() as u64).saturating_mul(count),
            None => weigh(&thing)?.saturating_mul(count),
        };
        self.spend(weight)
    }

    /// Weighs `text.replace(old, new)`.
    fn replace(&self, args: &[Value]) -> Result<(), Error> {
        let part = |n| args.get(n).map(text).unwrap_or_default();
        let (all, old, new) = (part(0), part(1), part(2));
        let n_found = all.matches(old.as_str()).count();
        let added = (n_found as u64).saturating_mul(new.len() as u64);
        self.spend(added.saturating_add((all.len() + old.len() + new.len()) as u64))
    }

    /// Weighs `pattern.format(..)`, whose fields have no width.
    fn format(&self, pattern: &str, args: &[Value]) -> Result<(), Error> {
        let mut largest = 0;
        for arg in args {
            largest = self.weigh(arg)?.max(largest);
        }
        let n_fields = pattern.matches('{').count() as u64;
        self.spend(n_fields.saturating_mul(largest))
    }

    /// Weighs items joined by a separator.
    fn join(&self, items: Option<&Value>, separator: Option<&Value>) -> Result<(), Error> {
        let Some(items) = items else { return Ok(()) };
        let weight = self.weigh(items)?;
        let gap = separator.map_or(Ok(0), weigh)?;
        // A text is joined letter by letter.
        let n_items = match items.as_str() {
            Some(text) => text.len(),
            None => items.len().unwrap_or_default(),
        };
        self.spend(weight.saturating_add(gap.saturating_mul(n_items as u64)))
    }
}

/// Positional arguments.
type Rest = minijinja::value::Rest<Value>;

/// What a value would weigh if nothing of it were shared.
fn weigh(value: &Value) -> Result<u64, Error> {
    let mut weight = 0;
    add_weight(value, 0, &mut weight)?;
    Ok(weight)
}

fn add_weight(value: &Value, depth: usize, weight: &mut u64) -> Result<(), Error> {
    if depth > limits::TEMPLATE_DEPTH {
        return Err(refused("it nests values too deeply".to_owned()));
    }
    *weight += NODE;
    match value.kind() {
        ValueKind::String => *weight += value.as_str().map_or(0, str::len) as u64,
        ValueKind::Bytes => *weight += value.as_bytes().map_or(0, <[u8]>::len) as u64,
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                add_weight(&item, depth + 1, weight)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                add_weight(&key, depth + 1, weight)?;
                add_weight(&value.get_item(&key)?, depth + 1, weight)?;
            }
        }
        _ => {}
    }
    match *weight > limits::TEMPLATE_VALUE_BYTES {
        true => Err(too_heavy()),
        false => Ok(()),
    }
}

/// The largest number among arguments, keyword arguments included; `true` counts as 2.
fn largest(args: &[Value]) -> u64 {
    let number = |v: &Value| match v.kind() {
        ValueKind::Bool => 2,
        _ => v.as_usize().unwrap_or(0) as u64,
    };
    let of = |v: &Value| match v.kind() {
        ValueKind::Map => {
            let keys = v.try_iter().into_iter().flatten();
            keys.filter_map(|key| v.get_item(&key).ok())
                .map(|v| number(&v))
                .max()
                .unwrap_or(0)
        }
        _ => number(v),
    };
    args.iter().skip(1).map(of).max().unwrap_or(0)
}

/// A value as text, if it is text.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Arguments as the engine's own filters take them.
fn all(args: Rest, named: Kwargs) -> Vec<Value> {
    let mut all = args.0;
    if named.args().next().is_some() {
        all.push(Value::from(named));
    }
    all
}

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn too_heavy() -> Error {
    refused(format!(
        "it computes a value of more than {} bytes",
        limits::TEMPLATE_VALUE_BYTES
    ))
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Check,
    Fit,
    Set,
}

/// One of the woven functions.
#[derive(Debug)]
struct Function {
    meter: Arc<Meter>,
    kind: Kind,
}

impl Object for Function {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _state: &mut State, args: &[Value]) -> Result<Value, Error> {
        match (self.kind, args) {
            (Kind::Check, [value]) => self.meter.check(value),
            (Kind::Fit, [pair]) => self.meter.fit(pair).map(|()| pair.clone()),
            (Kind::Set, [value, names, name]) => {
                let value = self.meter.check(value)?;
                let names = names.downcast_object_ref::<Names>().ok_or_else(|| {
                    refused(format!(
                        "can only assign to namespaces, not {}",
                        names.kind()
                    ))
                })?;
                names.set(name, value)?;
                Ok(Value::UNDEFINED)
            }
            _ => Err(ErrorKind::InvalidOperation.into()),
        }
    }
}

/// What `namespace()` gives. It has no text of its own, and stands in no other namespace: there
/// are no values that contain themselves.
#[derive(Debug, Default)]
struct Names(Mutex<BTreeMap<String, Value>>);

impl Names {
    fn set(&self, name: &Value, value: Value) -> Result<(), Error> {
        if holds_names(&value) {
            return Err(refused("a namespace cannot hold another".to_owned()));
        }
        let mut names = lock(&self.0);
        names.insert(name.to_string(), value);
        Ok(())
    }
}

/// The function of that name.
fn namespace(first: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let names = Names::default();
    if let Some(map) = first {
        for key in map.try_iter()? {
            names.set(&key, map.get_item(&key)?)?;
        }
    }
    for key in kwargs.args() {
        names.set(&Value::from(key), kwargs.get(key)?)?;
    }
    Ok(Value::from_object(names))
}

impl Object for Names {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let names = lock(&self.0);
        names.get(key.as_str()?).cloned()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<namespace>")
    }
}

/// True if a value that was weighed contains a namespace.
fn holds_names(value: &Value) -> bool {
    let inside = |v: &Value| {
        v.try_iter()
            .is_ok_and(|mut items| items.any(|i| holds_names(&i)))
    };
    match value.kind() {
        ValueKind::Plain => value.downcast_object_ref::<Names>().is_some(),
        ValueKind::Seq | ValueKind::Iterable => inside(value),
        ValueKind::Map => {
            inside(value)
                || value.try_iter().is_ok_and(|mut keys| {
                    keys.any(|key| value.get_item(&key).is_ok_and(|v| holds_names(&v)))
                })
        }
        _ => false,
    }
}
