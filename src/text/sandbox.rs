//! A Jinja program from outside, compiled and run within limits.
//!
//! The engine counts instructions (fuel) and macro calls, but neither the memory of the values
//! that a program computes nor the stack that its own parser needs. Both are bounded here:
//!
//! | what | how |
//! |------|-----|
//! | stack | compiled and run on a thread of [`STACK_BYTES`]; the recursion of parser and compiler follows the number of tokens, which is limited, per tag and in all |
//! | values | every instruction that makes one is followed by a call that weighs it, every one that reads two or writes text is preceded by one (see [`Meter`]) |
//! | constants | `*` is never computed by the compiler: it folds constants without limit |
//! | products | `*`, `replace`, `join`, `indent`, `tojson` are weighed before they are done |
//!
//! Not there at all: blocks, imports, unpacking arguments (`f(*list)`), and the filters that
//! multiply their input and that no chat template uses ([`MISSING_FILTERS`]).
//!
//! The calls are woven into the compiled instructions through the engine's unstable interface;
//! hence the exact version in `Cargo.toml`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, eval, make_string_output, parse, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, escape_formatter};

use super::meter::{CHECK, FIT, Meter, SET};
use super::vocabulary::short;
use crate::limits;

/// Stack of the thread that compiles and runs a template; touched as far as it is needed.
const STACK_BYTES: usize = 64 << 20;

/// Name of the template in messages.
const NAME: &str = "chat";

/// Filters whose result is not bounded by a small multiple of their input, or whose input is not
/// text; those of `Meter::install` replace the others of that kind.
const MISSING_FILTERS: [&str; 8] = [
    "batch", "chain", "format", "groupby", "pprint", "slice", "sum", "zip",
];

/// A program that compiles.
#[derive(Debug)]
pub(super) struct Sandbox {
    source: String,
}

impl Sandbox {
    /// Checks and compiles a program.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(source: &str) -> Result<Self, String> {
        let source = unfolded(source)?;
        apart(|| compile(&source).map(drop))?;
        Ok(Self { source })
    }

    /// What the program writes for `context`.
    ///
    /// # Errors
    /// Why it failed, or which limit it hit.
    pub fn render(&self, context: Value) -> Result<String, String> {
        apart(|| {
            let instructions = compile(&self.source)?;
            let environment = environment();
            let mut text = String::new();
            let mut out = make_string_output(&mut text);
            let blocks = BTreeMap::new();
            let escape = AutoEscape::None;
            eval(
                &environment,
                &instructions,
                context,
                &blocks,
                &mut out,
                escape,
            )
            .map_err(|e| short(&e.to_string()))?;
            Ok(text)
        })
    }
}

/// Runs `work` on a thread with a stack that the limits fit into.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|e| format!("no thread to render it: {e}"))?
            .join()
            .unwrap_or_else(|_| Err("the template engine failed".to_owned()))
    })
}

fn syntax() -> Result<SyntaxConfig, String> {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|e| e.to_string())
}

fn environment() -> Environment<'static> {
    let meter = Arc::new(Meter::default());
    let mut environment = Environment::new();
    environment.set_debug(false);
    environment.set_fuel(Some(limits::TEMPLATE_STEPS));
    environment.set_recursion_limit(limits::TEMPLATE_DEPTH);
    for name in MISSING_FILTERS {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    meter.install(&mut environment);
    environment.set_formatter(move |out, state, value| {
        meter.write(value)?;
        escape_formatter(out, state, value)
    });
    environment
}

/// The source with its tokens counted, and with every `*` written so that the compiler does not
/// compute it: `a * b` as `a * (1|int) * b`.
fn unfolded(source: &str) -> Result<String, String> {
    let (mut tokens, mut in_tag) = (0usize, 0usize);
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    for token in tokenize(source, false, syntax()?) {
        let (token, span) = token.map_err(|e| short(&e.to_string()))?;
        tokens += 1;
        in_tag = match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => 0,
            _ => in_tag + 1,
        };
        if in_tag > limits::TEMPLATE_TAG_TOKENS {
            return Err(format!(
                "line {}: a tag of more than {} tokens",
                span.start_line,
                limits::TEMPLATE_TAG_TOKENS
            ));
        }
        if tokens > limits::TEMPLATE_TOKENS {
            return Err(format!("more than {} tokens", limits::TEMPLATE_TOKENS));
        }
        if matches!(token, Token::Mul) {
            let end = span.end_offset as usize;
            out += source.get(copied..end).unwrap_or_default();
            out += "(1|int)*";
            copied = end;
        }
    }
    out += source.get(copied..).unwrap_or_default();
    Ok(out)
}

fn compile(source: &str) -> Result<Instructions<'_>, String> {
    let tree = parse(source, NAME, syntax()?).map_err(|e| short(&e.to_string()))?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (instructions, blocks) = generator.finish();
    if !blocks.is_empty() {
        return Err("blocks are not supported".to_owned());
    }
    metered(&instructions, source)
}

/// The instructions with those of the meter between them.
fn metered<'s>(old: &Instructions<'s>, source: &'s str) -> Result<Instructions<'s>, String> {
    let mut starts = Vec::new();
    let mut woven = Vec::new();
    let mut at = 0;
    while let Some(instruction) = old.get(at) {
        starts.push(woven.len() as u32);
        let line = old.get_line(at).unwrap_or_default();
        let parts = weave(instruction).ok_or_else(|| {
            format!("line {line}: blocks, imports and `*arguments` are not supported")
        })?;
        woven.extend(parts.into_iter().map(|part| (part, line as u16)));
        at += 1;
    }
    starts.push(woven.len() as u32);
    let mut new = Instructions::new(NAME, source);
    for (mut instruction, line) in woven {
        use Instruction as I;
        if let I::Iterate(target)
        | I::Jump(target)
        | I::JumpIfFalse(target)
        | I::JumpIfFalseOrPop(target)
        | I::JumpIfTrueOrPop(target)
        | I::BuildMacro(_, target, _) = &mut instruction
        {
            *target = starts[*target as usize];
        }
        new.add_with_line(instruction, line);
    }
    Ok(new)
}

/// What stands for an instruction; `None` for those that chat templates have no use for.
fn weave<'s>(instruction: &Instruction<'s>) -> Option<Vec<Instruction<'s>>> {
    use Instruction as I;
    let it = || instruction.clone();
    let check = || I::CallFunction(CHECK, Some(1));
    Some(match instruction {
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::SetAttr(name) => vec![
            I::LoadConst(Value::from(*name)),
            I::CallFunction(SET, Some(3)),
            I::DiscardTop,
        ],
        I::Mul => vec![
            I::BuildTuple(Some(2)),
            I::CallFunction(FIT, Some(1)),
            I::UnpackList(2),
            I::Swap,
            it(),
            check(),
        ],
        I::StringConcat => vec![check(), I::Swap, check(), I::Swap, it(), check()],
        I::Add
        | I::Slice
        // Without a count: the items of a loop with a condition.
        | I::BuildList(_)
        | I::BuildTuple(Some(_))
        | I::BuildMap(_)
        | I::EndCapture
        | I::CallObject(Some(_))
        | I::CallFunction(_, Some(0)) => vec![it(), check()],
        I::CallFunction(_, Some(_)) | I::ApplyFilter(_, Some(_), _) | I::CallMethod(_, Some(_)) => {
            vec![check(), it(), check()]
        }
        I::PerformTest(_, Some(_), _)
        | I::Eq
        | I::Ne
        | I::Gt
        | I::Gte
        | I::Lt
        | I::Lte
        | I::In
        | I::CompareAndPreserve(_)
        | I::PushLoop(_) => vec![check(), it()],
        // The rest moves values, jumps, or computes with numbers.
        I::StoreLocal(_)
        | I::Lookup(_)
        | I::GetAttr(_)
        | I::GetItem
        | I::LoadConst(_)
        | I::BuildKwargs(_)
        | I::UnpackList(_)
        | I::Sub
        | I::Div
        | I::IntDiv
        | I::Rem
        | I::Pow
        | I::Neg
        | I::Not
        | I::Emit
        | I::PushWith
        | I::Iterate(_)
        | I::PushDidNotIterate
        | I::PopFrame
        | I::PopLoopFrame
        | I::Jump(_)
        | I::JumpIfFalse(_)
        | I::JumpIfFalseOrPop(_)
        | I::JumpIfTrueOrPop(_)
        | I::PushAutoEscape
        | I::PopAutoEscape
        | I::BeginCapture(_)
        | I::DupTop
        | I::DiscardTop
        | I::FastRecurse
        | I::Swap
        | I::BuildMacro(..)
        | I::Return
        | I::IsUndefined
        | I::Enclose(_)
        | I::GetClosure => vec![it()],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        Sandbox::new(source)?.render(minijinja::context! { a => "a", n => 3, list => [1, 2] })
    }

    #[test]
    fn programs_within_the_limits_give_what_the_engine_alone_gives() {
        for (source, expected) in [
            (
                "{{ 2 * 3 * n }} {{ 'ab' * n }} {{ n * '-' }}",
                "18 ababab ---",
            ),
            (
                "{{ (list * 2)|join(',') }} {{ (1, 2) * 2 }}",
                "1,2,1,2 (1, 2, 1, 2)",
            ),
            (
                "{{ 7 / 2 * 2 }} {{ n ** 2 }} {{ -n // 2 }} {{ n % 2 }}",
                "7.0 9 -2 1",
            ),
            ("{{ list + [3] }}{{ (list + [3])[1:] }}", "[1, 2, 3][2, 3]"),
            (
                "{{ 'b' if n > 2 else 'c' }}{{ 1 < n < 4 }}{{ n in list }}",
                "bTrueFalse",
            ),
            (
                "{% macro f(x, y=2) %}{{ x }}-{{ y }};{% endmacro %}{{ f(1) }}{{ f(a, y=n) }}",
                "1-2;a-3;",
            ),
            (
                "{% set x %}a{{ n }}{% endset %}{{ x }}{{ x|length }}",
                "a32",
            ),
            (
                "{% set ns = namespace(x=1) %}{% for i in list %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
                "4",
            ),
            (
                "{% for i in list if i > 1 %}{{ loop.index }}{{ i }}{% else %}none{% endfor %}",
                "12",
            ),
            ("{{ '{}-{1}'.replace('1', '').format(n, a) }}", "3-a"),
            (
                "{% for i in [[1, 3], 2] recursive %}{{ i if i is number else loop(i) }},{% endfor %}",
                "1,3,,2,",
            ),
            (
                "{% for i in list %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% break %}{% endfor %}",
                "2",
            ),
            (
                "{{ {'a': [1]}|tojson }}{{ {'a': 1}|tojson(indent=1) }}",
                "{\"a\": [1]}{\n \"a\": 1\n}",
            ),
            (
                "{{ 'a b'|replace(' ', '_')|indent(2) }}{{ 'x,y'.replace(',', '').join(['1', '2']) }}",
                "a_b1xy2",
            ),
            (
                "{% raw %}{{ 2 * 3 }}{% endraw %}{{ '*' }}{# * #}",
                "{{ 2 * 3 }}*",
            ),
            (
                "{% call f() %}{% endcall %}{% macro f() %}{% endmacro %}",
                "",
            ),
            (
                "{{ [3, 1]|sort }}{{ {'b': 1, 'a': 2}|dictsort }}{{ 'ab'|list }}",
                "[1, 3][('a', 2), ('b', 1)]['a', 'b']",
            ),
        ] {
            let plain = || {
                let mut environment = Environment::new();
                environment.set_syntax(syntax().expect("syntax"));
                environment.set_unknown_method_callback(
                    minijinja_contrib::pycompat::unknown_method_callback,
                );
                environment
                    .render_str(
                        source,
                        minijinja::context! { a => "a", n => 3, list => [1, 2] },
                    )
                    .map_err(|e| e.to_string())
            };
            let ours = render(source);
            assert_eq!(
                ours.clone().ok(),
                plain().ok(),
                "{source}: {ours:?} {:?}",
                plain()
            );
            if let Ok(text) = ours {
                assert_eq!(text, expected, "{source}");
            }
        }
    }

    #[test]
    fn programs_at_the_token_limits_fit_into_the_stack() {
        let tokens = limits::TEMPLATE_TAG_TOKENS - 8;
        let elifs = limits::TEMPLATE_TOKENS / 5 - 8;
        for (source, ok) in [
            (format!("{{{{ a{} }}}}", "~a".repeat(tokens / 2)), true),
            (format!("{{{{ a{} }}}}", ".a".repeat(tokens / 2)), false),
            (format!("{{{{ a{} }}}}", "|trim".repeat(tokens / 2)), true),
            (format!("{{{{ {}a }}}}", "not ".repeat(tokens)), true),
            (
                format!("{{{{ a{} }}}}", " if a else a".repeat(tokens / 4)),
                true,
            ),
            (format!("{{{{ a{} }}}}", " if n".repeat(tokens / 2)), true),
            (format!("{{{{ 1{} }}}}", "+1".repeat(tokens / 2)), true),
            (format!("{{{{ a + {}1 }}}}", "1+".repeat(tokens / 2)), false),
            (
                format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}b".repeat(elifs)),
                true,
            ),
        ] {
            let shown: String = source.chars().take(40).collect();
            assert_eq!(render(&source).is_ok(), ok, "{shown}");
        }
    }
}
