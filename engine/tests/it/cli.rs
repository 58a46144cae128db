//! The program as people and scripts use it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreshard"));
    command.args(args).current_dir(folder).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn one_statement_prints_its_rows_in_the_form_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let sql = "SELECT column1 AS id, column2 AS name FROM (VALUES (1, 'a'), (2, NULL))";
    let csv = run(folder.path(), &["sql", "--command", sql, "--format", "csv"]);
    assert_eq!((csv.status.code(), out(&csv)), (Some(0), "id,name\n1,a\n2,\n"), "{}", err(&csv));
    let json = run(folder.path(), &["sql", "-c", sql, "--format", "json"]);
    let value: serde_json::Value = serde_json::from_str(out(&json)).unwrap();
    assert_eq!(value, serde_json::json!([{"id": 1, "name": "a"}, {"id": 2, "name": null}]));
    let table = run(folder.path(), &["sql", "-c", sql]);
    assert!(out(&table).contains("| 2  | NULL |"), "{}", out(&table));
}

#[test]
fn a_file_runs_up_to_its_first_error_and_the_error_has_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        "SELECT 'a;b' AS x; -- one;\n\nSELECT 1 AS one;\n  SELECT * FROM nowhere;\nSELECT 9;";
    std::fs::write(folder.path().join("day.sql"), text).unwrap();
    let ran = run(folder.path(), &["sql", "--file", "day.sql", "--format", "csv"]);
    assert_eq!(ran.status.code(), Some(1));
    assert_eq!(out(&ran), "x\na;b\none\n1\n");
    assert_eq!(err(&ran), "day.sql:4:3: error[FS-SQL-2]: unknown table nowhere\n");
}

#[test]
fn statements_can_come_through_a_pipe_and_tables_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut piped = command(folder.path(), &["sql", "--format", "csv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let create = "CREATE EXTERNAL TABLE kept (id BIGINT) STORED AS DELTA LOCATION 'kept';\n\
                  INSERT INTO kept VALUES (7);";
    piped.stdin.take().unwrap().write_all(create.as_bytes()).unwrap();
    let piped = piped.wait_with_output().unwrap();
    assert_eq!(piped.status.code(), Some(0), "{}", err(&piped));
    let again = run(folder.path(), &["sql", "-c", "SELECT id FROM kept", "--format", "csv"]);
    assert_eq!(out(&again), "id\n7\n", "{}", err(&again));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let sql = "SELECT value FROM generate_series(1, 1000000)";
    let mut child = command(folder.path(), &["sql", "-c", sql, "--format", "csv"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "value\n");
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), err(&done)), (Some(0), ""));
}

#[test]
fn config_show_tells_value_source_and_meaning_and_a_bad_setting_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("foreshard.toml"), "nodes = 3\n").unwrap();
    let shown = run(folder.path(), &["config", "show", "--set", "limits.query-seconds=7"]);
    assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
    assert!(out(&shown).contains("nodes = 3  # foreshard.toml (default 1)"), "{}", out(&shown));
    assert!(out(&shown).contains("# Time that one query may take. In s. Must be 1 to 86400.\n"));
    assert!(out(&shown).contains("query-seconds = 7  # flag (default 300)"));
    // What is shown is itself a settings file.
    std::fs::write(folder.path().join("foreshard.toml"), out(&shown)).unwrap();
    let again = run(folder.path(), &["config", "show"]);
    assert_eq!(again.status.code(), Some(0), "{}", err(&again));

    let bad = run(folder.path(), &["config", "show", "--set", "nodse=2"]);
    assert_eq!(bad.status.code(), Some(1));
    let text = "error[FS-CONFIG-3]: unknown setting nodse in flag; did you mean nodes?\n";
    assert_eq!(err(&bad), text);
}

fn serve(folder: &Path, args: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command(folder, &[&["serve"], args].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

#[test]
fn serve_says_what_it_listens_on_refuses_a_taken_port_and_ends_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (child, mut lines) =
        serve(folder.path(), &["--http", "127.0.0.1:0", "--flight", "127.0.0.1:0"]);
    let mut http = String::new();
    lines.read_line(&mut http).unwrap();
    let address = http.trim().strip_prefix("http: http://").unwrap().to_owned();
    let mut flight = String::new();
    lines.read_line(&mut flight).unwrap();
    assert!(flight.starts_with("flight: grpc://127.0.0.1:"), "{flight}");

    let other = tempfile::tempdir().unwrap();
    let second = run(other.path(), &["serve", "--http", &address, "--flight", "off"]);
    assert_eq!(second.status.code(), Some(1));
    let text = format!("error[FS-NET-1]: address {address} is in use by another program\n");
    assert_eq!(err(&second), text);

    let asked = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(asked.success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", err(&ended));
}
