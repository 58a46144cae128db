//! Keeps `docs/config.md` the same as what the settings say of themselves.

use std::fmt::Write;
use std::path::Path;

use foreshard::Config;

/// Settings whose default depends on the machine.
const OF_THE_MACHINE: [(&str, &str); 1] = [("partitions", "one per processor core")];

const OPENING: &str = "\
# Settings

Written by the test `config_doc` from the settings themselves: do not edit.

Later sources win: defaults, then `foreshard.toml` in the working folder (or `--config FILE`), then
environment variables, then `--set KEY=VALUE` and other flags. In the file the part before the last
dot is a table; in the environment `.` becomes `__`, `-` becomes `_`, and `FORESHARD_` stands before:

| file | environment | flag |
|---|---|---|
| `[limits]` `query-seconds = 60` | `FORESHARD_LIMITS__QUERY_SECONDS=60` | `--set limits.query-seconds=60` |

`foreshard config show` prints the settings in force, each with its source. An unknown key or a value
outside its bound is an error that names both.
";

fn manual() -> String {
    let mut text = OPENING.to_owned();
    let mut section = None;
    for entry in Config::default().entries() {
        let (of, name) = entry.key.rsplit_once('.').unwrap_or(("", &entry.key));
        if section.as_deref() != Some(of) {
            let title = if of.is_empty() { "At the top" } else { &format!("`[{of}]`") };
            write!(text, "\n## {title}\n\n| key | default | unit | bound | what it does |\n")
                .unwrap();
            text.push_str("|---|---|---|---|---|\n");
            section = Some(of.to_owned());
        }
        let machine = OF_THE_MACHINE.iter().find(|(key, _)| *key == entry.key);
        let default = match (machine, entry.default.as_str()) {
            (Some((_, words)), _) => (*words).to_owned(),
            (None, "") => "(empty)".to_owned(),
            (None, value) => format!("`{value}`"),
        };
        let (unit, bound, doc) = (entry.unit, &entry.bound, entry.doc.replace('|', "\\|"));
        writeln!(text, "| `{name}` | {default} | {unit} | {bound} | {doc} |").unwrap();
    }
    text
}

#[test]
fn the_manual_of_settings_says_what_the_settings_say() {
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let written = std::fs::read_to_string(&there).unwrap_or_default();
    let expected = manual();
    if written != expected {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("config.md");
        std::fs::write(&new, &expected).unwrap();
        let differs = expected.lines().zip(written.lines()).find(|(new, old)| new != old);
        panic!(
            "docs/config.md is not what the settings say; first difference: {differs:?}\n\
             to take the new text: cp {} docs/config.md",
            new.display()
        );
    }
}
