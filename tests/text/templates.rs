//! Chat templates: where they stand, what they may do.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trtvlm::model::ModelConfig;
use trtvlm::text::{ImageSlot, Text};
use trtvlm::{Error, Result, limits};

use super::common::*;

fn with_template(template: &str) -> Result<(ModelConfig, Text)> {
    let dir = copy(DEMO);
    fs::write(dir.path().join("chat_template.jinja"), template).expect("write");
    load(dir.path())
}

#[test]
fn template_files_are_looked_up_in_order() {
    let first_word = |dir: &Path| {
        let (_, text) = load(dir).expect("a folder");
        let prompt = text.prompt("x", &[]).expect("a prompt");
        prompt.text.split(' ').next().map(str::to_string)
    };
    let template = |word: &str| {
        format!(
            "{word} {{% for part in messages[0]['content'] %}}{{% if part.type == 'image' %}}\
             <image>{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}"
        )
    };
    let dir = copy(DEMO);
    assert_eq!(
        first_word(dir.path()).as_deref(),
        Some("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")
    );
    edit(dir.path(), "tokenizer_config.json", |v| {
        v["chat_template"] = json!([
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": template("third")}
        ]);
    });
    assert_eq!(first_word(dir.path()).as_deref(), Some("third"));
    let json = json!({"chat_template": template("second")}).to_string();
    fs::write(dir.path().join("chat_template.json"), json).expect("write");
    assert_eq!(first_word(dir.path()).as_deref(), Some("second"));
    fs::write(dir.path().join("chat_template.jinja"), template("first")).expect("write");
    assert_eq!(first_word(dir.path()).as_deref(), Some("first"));
}

#[test]
fn template_renders_as_python_does() {
    let (_, text) = with_template(
        "{%- set ns = namespace(n=0) -%}\n\
         {% for message in messages %}\n\
         \x20   {%- if message.role not in ['user'] %}{{ raise_exception('role') }}{% endif %}\n\
         \x20   {% for part in message['content'] %}\n\
         {% set ns.n = ns.n + 1 %}\n\
         {% if part.type == 'image' %}<image>{% continue %}{% endif %}\n\
         {{ part['text'].strip() + eos_token }}\n\
         {% endfor %}\n\
         {% endfor %}\n\
         {{ 'a,b'.split(',')[1] ~ ns.n }}{% if tools %}tools{% endif %}{{ bos_token is defined }}\
         {{ strftime_now('%Y')[:1] }}\n",
    )
    .expect("a template");
    let prompt = text
        .prompt("  where?\n", &[ImageSlot::Single])
        .expect("a prompt");
    let image = "<image>".repeat(256);
    assert_eq!(prompt.text, format!("{image}where?<|im_end|>\nb2False2"));
}

#[test]
fn template_hostile_or_useless_is_refused_in_time() {
    let question = "{{ messages[0]['content'][-1]['text'] }}";
    let cases: Vec<(String, &str)> = vec![
        (
            "{% for a in range(1000) %}{% for b in 'x' * 1000 %}{% endfor %}{% endfor %}".into(),
            "fuel",
        ),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
            "recursion",
        ),
        ("{{ 'x' * 90000000 }}".into(), "a value of more than"),
        (
            "{% set x = 'x' * 200000 %}{% for a in 'abcdef' %}{{ x }}{% endfor %}".into(),
            "writes more than",
        ),
        ("{{ raise_exception('not for you') }}".into(), "not for you"),
        (
            format!("{}x{}", "(".repeat(100_000), ")".repeat(100_000)),
            "the question once",
        ),
        (
            format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
            "chat template",
        ),
        ("{{ [".repeat(1000), "chat template"),
        ("{% if %}".into(), "chat template"),
        ("{% include 'other' %}".into(), "chat template"),
        ("{% extends '/etc/passwd' %}".into(), "chat template"),
        (String::new(), "the question once"),
        ("hello".into(), "the question once"),
        (question.into(), ""),
        (format!("<image>{question}{question}"), "the question once"),
        (format!("<image><image>{question}"), "shows 2 images of 1"),
        (
            question.replace(" }}", " | upper }}<image>"),
            "the question once",
        ),
        (
            question.replace(" }}", " | replace(' ', '_') }}<image>"),
            "rewrites the question",
        ),
        ("{{ strftime_now('%Q') }}".into(), "%Q"),
        (" ".repeat(limits::TEMPLATE_BYTES + 1), "the limit is"),
    ];
    for (template, expected) in cases {
        let start = Instant::now();
        let shown: String = template.chars().take(60).collect();
        let Err(e) = with_template(&template) else {
            panic!("{shown:?} was accepted");
        };
        assert!(e.to_string().contains(expected), "{shown:?}: {e}");
        assert!(
            e.to_string().contains("chat_template.jinja"),
            "{shown:?}: {e}"
        );
        assert!(e.to_string().len() < 1000, "{shown:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{shown:?}");
    }
}

#[test]
fn template_missing_everywhere_is_named() {
    let dir = copy(DEMO);
    edit(dir.path(), "tokenizer_config.json", |v| {
        v["chat_template"] = Value::Null
    });
    let e = load(dir.path()).expect_err("no template");
    assert!(e.to_string().contains("no `chat_template`"), "{e}");
    fs::remove_file(dir.path().join("tokenizer_config.json")).expect("remove");
    assert!(matches!(load(dir.path()), Err(Error::Malformed { .. })));
    fs::write(dir.path().join("chat_template.jinja"), b"\xff\xfe").expect("write");
    let e = load(dir.path()).expect_err("not UTF-8");
    assert!(e.to_string().contains("not UTF-8"), "{e}");
}

/// A body, run often enough to double what it changes beyond any memory.
fn repeated(start: &str, body: &str) -> String {
    format!(
        "{{% set ns = namespace(x={start}) %}}{{% for i in range(200) %}}{{% set ns.x = {body} %}}{{% endfor %}}\
         {{{{ ns.x|length }}}}{{{{ messages[0]['content'][-1]['text'] }}}}<image>"
    )
}

#[test]
fn template_that_grows_a_value_is_refused_in_time() {
    let grown = [
        ("'xy'", "ns.x ~ ns.x"),
        ("'xy'", "ns.x + ns.x"),
        ("'xy'", "ns.x * 2"),
        ("'xy'", "2 * ns.x"),
        ("'xy'", "[ns.x, ns.x]|join(ns.x)"),
        ("'xy'", "ns.x.join([ns.x, ns.x])"),
        ("'xy'", "ns.x|replace('x', 'xx')"),
        ("'xy'", "ns.x|replace('', ns.x)"),
        ("'xy'", "ns.x.replace('x', 'xxx')"),
        ("'xy'", "ns.x ~ '\n' ~ ns.x|indent(1000)"),
        ("'xy'", "[ns.x, ns.x]|tojson"),
        ("'xy'", "[ns.x, ns.x]|string"),
        ("'xy'", "f(ns.x)"),
        ("'xy'", "'{0}{0}'.format(ns.x)"),
        ("[1]", "ns.x + ns.x"),
        ("[1]", "ns.x * 3"),
        ("(1, 2)", "ns.x + ns.x"),
        ("(1, 2)", "ns.x * 100000"),
        ("[1]", "[ns.x, ns.x]"),
        ("[1]", "(ns.x, ns.x)"),
        ("[1]", "{'a': ns.x, 'b': ns.x}"),
        ("[1]", "[ns.x]"),
        ("[1]", "dict(a=ns.x, b=ns.x)"),
        ("[1]", "(ns.x + ns.x)[0:]"),
        ("[1]", "(ns.x + ns.x)|reverse"),
        ("[1]", "(ns.x + ns.x)|map('string')|list"),
    ];
    let mut cases: Vec<String> = grown.map(|(start, body)| repeated(start, body)).into();
    cases[12] = format!(
        "{{% macro f(x) %}}{{{{ x }}}}{{{{ x }}}}{{% endmacro %}}{}",
        cases[12]
    );
    let doubled =
        |start: &str, body: &str| format!("{{% set x = {start} %}}{}{{{{ x }}}}", body.repeat(60));
    cases.extend([
        doubled("'xy'", "{% set x = x ~ x %}"),
        doubled("'xy'", "{% set x %}{{ x }}{{ x }}{% endset %}"),
        doubled(
            "'xy'",
            "{% set x %}{% filter replace('x', 'xxxx') %}{{ x }}{% endfilter %}{% endset %}",
        ),
        format!(
            "{}{}",
            "{% for x in [x ~ 'xy' ~ x] %}{% for x in [x ~ x] %}".repeat(60),
            "{% endfor %}".repeat(120)
        ),
        format!("{{{{ 'x'{} }}}}", " * 100000000 ~ 'x'".repeat(1000)),
        format!("{{{{ ('x'{})|length }}}}", " * 10".repeat(20)),
        "{{ [1, [2, [3]]]|tojson(indent=100000000) }}".to_owned(),
        "{{ [1, [2, [3]]]|tojson(100000000) }}".to_owned(),
        "{{ 'a'|indent(100000000, true) }}".to_owned(),
        "{{ [1]|batch(100000000, 1) }}".to_owned(),
        "{{ [1]|slice(100000000) }}".to_owned(),
        "{{ '%100000000d'|format(1) }}".to_owned(),
        "{{ '{:100000000}'.format(1) }}".to_owned(),
        "{{ range(100000) }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace() %}{% set m = namespace(x=ns) %}{{ m.x }}".to_owned(),
        "{% macro f() %}{% endmacro %}{{ f(*[1, 2]) }}".to_owned(),
        "{% block a %}{% endblock %}".to_owned(),
        format!("{{{{ {}1 }}}}", "1+".repeat(200_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(200_000)),
        format!("{{{{ a{} }}}}", "|trim".repeat(100_000)),
        format!("{{{{ 'a'{} }}}}", " ~ '}}'".repeat(100_000)),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(80_000)),
    ]);
    for template in cases {
        let shown: String = template.chars().take(160).collect();
        let start = Instant::now();
        let Err(e) = with_template(&template) else {
            panic!("{shown:?} was accepted");
        };
        assert!(matches!(e, Error::Malformed { .. }), "{shown:?}: {e}");
        let e = e.to_string();
        let reasons = [
            "more than",
            "too deeply",
            "unknown",
            "a namespace cannot hold another",
            "not supported",
        ];
        assert!(reasons.iter().any(|r| e.contains(r)), "{shown:?}: {e}");
        assert!(start.elapsed() < Duration::from_secs(5), "{shown:?}");
    }
}
