//! SQL over HTTP, as a client that knows nothing but HTTP sees it.

use std::collections::HashMap;
use std::net::SocketAddr;

use arrow::ipc::reader::StreamReader;
use foreshard::serve::Servers;
use foreshard::{Config, Engine};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::runtime;

/// An answer, with its body put together if it came in chunks.
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
    /// Whether the body came to its end.
    whole: bool,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses a body closes before it has read all of it.
    let _refused = stream.write_all(body).await;
    let mut bytes = Vec::new();
    let _reset = stream.read_to_end(&mut bytes).await;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let rest = &bytes[end + 4..];
    let chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
    let (body, whole) = if chunked { unchunked(rest) } else { (rest.to_vec(), true) };
    Answer { status, headers, body, whole }
}

fn unchunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            return (body, false);
        };
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        rest = &rest[end + 2..];
        if size == 0 {
            return (body, true);
        }
        if rest.len() < size + 2 {
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

async fn sql(address: SocketAddr, accept: &str, text: &str) -> Answer {
    request(address, "POST", "/v1/sql", &[("accept", accept)], text.as_bytes()).await
}

/// Runs `test` against a server with the table `trades` of three rows.
fn with_server<F, Running>(settings: &'static [(&str, &str)], test: F)
where
    F: FnOnce(SocketAddr, Engine) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send,
{
    runtime::run(async move {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default().with_data_dir(folder.path().to_owned()).unwrap();
        let always = [("serve.http-address", "127.0.0.1:0"), ("serve.flight-address", "off")];
        for (key, value) in always.iter().chain(settings) {
            config = config.set(key, value).unwrap();
        }
        let engine = Engine::builder().config(config).manual_ticks(true).start().await.unwrap();
        let make =
            "CREATE TABLE trades (id BIGINT, name TEXT) AS VALUES (1, 'a'), (2, 'b'), (3, NULL)";
        engine.sql(make).await.unwrap();
        let servers = Servers::start(&engine).await.unwrap();
        test(servers.http_address().unwrap(), engine.clone()).await;
        servers.stop().await;
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn rows_come_in_the_form_that_the_client_accepts() {
    with_server(&[], |address, _| async move {
        let text = "SELECT id, name FROM trades ORDER BY id";
        let json = sql(address, "*/*", text).await;
        assert_eq!(json.status, 200);
        let value = json.json();
        assert_eq!(value["rows"][1]["name"], "b");
        assert!(value["rows"][2]["name"].is_null());
        assert_eq!(value["schema"][0]["name"], "id");

        let lines = sql(address, "application/x-ndjson", text).await;
        assert_eq!(lines.text().lines().count(), 3);
        let csv = sql(address, "text/csv", text).await;
        assert_eq!(csv.text(), "id,name\n1,a\n2,b\n3,\n");

        let arrow = sql(address, "application/vnd.apache.arrow.stream", text).await;
        let rows: usize = StreamReader::try_new(arrow.body.as_slice(), None)
            .unwrap()
            .map(|batch| batch.unwrap().num_rows())
            .sum();
        assert_eq!(rows, 3);
        assert!(arrow.whole && json.whole && lines.whole && csv.whole);
    });
}

#[test]
fn an_answer_without_rows_is_whole_and_still_has_its_columns() {
    with_server(&[], |address, _| async move {
        let text = "SELECT id, name FROM trades WHERE id < 0";
        let json = sql(address, "application/json", text).await;
        let value = json.json();
        assert_eq!(value["rows"], serde_json::json!([]));
        assert_eq!(value["schema"][1]["name"], "name");
        let csv = sql(address, "text/csv", text).await;
        assert_eq!(csv.text(), "id,name\n");
        let arrow = sql(address, "application/vnd.apache.arrow.stream", text).await;
        let mut batches = StreamReader::try_new(arrow.body.as_slice(), None).unwrap();
        assert_eq!(batches.schema().fields().len(), 2);
        assert!(batches.all(|batch| batch.unwrap().num_rows() == 0));
        assert!(json.whole && csv.whole && arrow.whole);
    });
}

#[test]
fn parameters_travel_as_json_and_changes_tell_how_many_rows() {
    with_server(&[], |address, _| async move {
        let json = [("content-type", "application/json")];
        let ask = |body: &'static str| request(address, "POST", "/v1/sql", &json, body.as_bytes());
        let found =
            ask(r#"{"sql": "SELECT name FROM trades WHERE id = $1", "parameters": [2]}"#).await;
        assert_eq!(found.json()["rows"], serde_json::json!([{"name": "b"}]));

        let changed = ask(r#"{"sql": "INSERT INTO trades VALUES (4, 'd')"}"#).await;
        assert_eq!(changed.headers["x-foreshard-rows-affected"], "1");

        let few = ask(r#"{"sql": "SELECT $1 + id, $2 FROM trades", "parameters": [2]}"#).await;
        assert_eq!((few.status, few.json()["code"].as_str()), (400, Some("FS-SQL-11")));
    });
}

#[test]
fn an_error_has_its_status_its_code_and_one_sentence() {
    with_server(&[("limits.request-bytes", "2000")], |address, _| async move {
        let missing = sql(address, "*/*", "SELECT * FROM tradse").await;
        assert_eq!(missing.status, 404);
        let error = missing.json();
        assert_eq!(error["code"], "FS-SQL-2");
        assert_eq!(error["message"], "unknown table tradse; did you mean trades?");
        assert_eq!(error["sqlstate"], "42P01");

        assert_eq!(sql(address, "*/*", "SELEC 1").await.json()["code"], "FS-SQL-1");
        let division = sql(address, "*/*", "SELECT id / (id - id) FROM trades").await;
        assert_eq!((division.status, division.json()["sqlstate"].as_str()), (422, Some("22012")));
        assert_eq!(sql(address, "image/png", "SELECT 1").await.status, 406);
        let large = sql(address, "*/*", &format!("SELECT '{}'", "x".repeat(3_000))).await;
        assert_eq!((large.status, large.json()["code"].as_str()), (413, Some("FS-NET-3")));
        assert_eq!(request(address, "GET", "/v1/nothing", &[], b"").await.status, 404);
    });
}

#[test]
fn an_error_after_the_first_rows_breaks_the_answer() {
    with_server(&[], |address, _| async move {
        // The second half of a union of tables fails when rows of the first are on their way.
        let text = "SELECT value FROM generate_series(1, 100000) UNION ALL \
                    SELECT 1 / (value - value) FROM generate_series(1, 100000) WHERE value > 99000";
        let broken = sql(address, "application/x-ndjson", text).await;
        assert!(broken.status != 200 || !broken.whole, "half an answer looks like a whole one");
    });
}

#[test]
fn a_server_says_how_it_is_and_counts_what_it_does() {
    with_server(&[], |address, engine| async move {
        assert_eq!(request(address, "GET", "/healthz", &[], b"").await.text(), "ok\n");
        assert_eq!(request(address, "GET", "/readyz", &[], b"").await.status, 200);
        assert_eq!(sql(address, "*/*", "SELECT 1").await.status, 200);
        assert_eq!(sql(address, "*/*", "SELECT x").await.status, 400);
        let metrics = request(address, "GET", "/metrics", &[], b"").await;
        let line = "foreshard_serve_queries_total{way=\"http\",code=\"ok\"} 1";
        assert!(metrics.text().contains(line), "{}", metrics.text());
        assert!(metrics.text().contains("way=\"http\",code=\"FS-SQL-3\"} 1"));
        drop(engine);
    });
}

#[test]
fn the_trace_of_the_client_is_named_in_the_answer() {
    with_server(&[], |address, _| async move {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let traced =
            request(address, "POST", "/v1/sql", &[("traceparent", parent)], b"SELECT 1").await;
        assert_eq!(traced.headers["x-foreshard-trace-id"], "0af7651916cd43dd8448eb211c80319c");
    });
}
