//! The server is killed with SIGKILL during inserts: every acknowledged row is there, none twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Times that the server is killed.
const KILLS: u64 = 20;

/// Inserters that work at the same time.
const CLIENTS: i64 = 3;

/// Polls of a starting server, 20 ms apart: one minute.
const POLLS_MAX: u32 = 3_000;
const POLL: Duration = Duration::from_millis(20);

/// A running server.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(data_dir: &std::path::Path) -> Self {
        let address = {
            let any = TcpListener::bind("127.0.0.1:0").unwrap();
            any.local_addr().unwrap().to_string()
        };
        let process = Command::new(env!("CARGO_BIN_EXE_foreshard"))
            .arg("serve")
            .env("FORESHARD_DATA_DIR", data_dir)
            .env("FORESHARD_SERVE__HTTP_ADDRESS", &address)
            .env("FORESHARD_SERVE__FLIGHT_ADDRESS", "off")
            .current_dir(data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { process, address };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) {
        for _ in 0..POLLS_MAX {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("the server ended by itself: {status}");
            }
            if matches!(request(&self.address, "GET", "/readyz", ""), Some((200, _))) {
                return;
            }
            std::thread::park_timeout(POLL);
        }
        panic!("the server was not ready after {POLLS_MAX} polls");
    }

    /// SIGKILL, and waits until the process is gone.
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn sql(&self, sql: &str) -> String {
        match request(&self.address, "POST", "/v1/sql", sql) {
            Some((200, body)) => body,
            answer => panic!("{sql}: {answer:?}"),
        }
    }
}

/// Status and body of the answer, or nothing if the connection broke before all of it came.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Accept: text/csv\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = if is_chunked { unchunked(body)? } else { body.to_owned() };
    Some((status, body))
}

/// The body that came in chunks; nothing if the last chunk is missing.
fn unchunked(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.push_str(after.get(..length)?);
        rest = after.get(length + 2..)?;
    }
}

/// What the clients know: batches whose insert was acknowledged, and all that were tried.
#[derive(Default)]
struct Known {
    /// Rows of each batch that was tried.
    tried: BTreeMap<i64, i64>,
    acknowledged: BTreeSet<i64>,
}

/// Inserts one batch after the other until the server is gone.
fn insert_until_killed(address: &str, client: i64, round: u64, known: &Mutex<Known>) {
    let mut rng = StdRng::seed_from_u64(round * 100 + client as u64);
    for number in 0.. {
        let batch = (round as i64 * CLIENTS + client) * 1_000_000 + number;
        let rows = rng.random_range(1..=12_i64);
        let values: Vec<String> =
            (0..rows).map(|row| format!("({}, {batch})", batch * 100 + row)).collect();
        known.lock().unwrap().tried.insert(batch, rows);
        let sql = format!("INSERT INTO events VALUES {}", values.join(", "));
        match request(address, "POST", "/v1/sql", &sql) {
            Some((200, _)) => drop(known.lock().unwrap().acknowledged.insert(batch)),
            // A conflict or a full queue is an answer too: the rows were not taken.
            Some((status, body)) if status >= 500 && !body.contains("unknown") => {
                panic!("insert refused with {status}: {body}")
            }
            Some(_) => {}
            None => return,
        }
    }
}

/// Rows of each batch that are there. No row may be there twice.
fn batches_present(server: &Server) -> BTreeMap<i64, i64> {
    let twice = "SELECT count(*) FROM (SELECT id FROM events GROUP BY id HAVING count(*) > 1)";
    assert_eq!(server.sql(twice).lines().nth(1), Some("0"), "rows are there twice");
    let counts = server.sql("SELECT batch, count(*) FROM events GROUP BY batch");
    let rows = counts.lines().skip(1).map(|line| {
        let (batch, count) = line.split_once(',').unwrap();
        (batch.parse().unwrap(), count.parse().unwrap())
    });
    rows.collect()
}

fn check(server: &Server, known: &Known, round: u64) {
    let present = batches_present(server);
    for batch in &known.acknowledged {
        let count = present.get(batch).copied().unwrap_or(0);
        assert_eq!(count, known.tried[batch], "round {round}: acknowledged batch {batch}");
    }
    for (batch, count) in &present {
        // Not acknowledged, but written: then all of it.
        assert_eq!(known.tried.get(batch), Some(count), "round {round}: batch {batch}");
    }
}

#[test]
fn twenty_kills_during_inserts_lose_no_acknowledged_row_and_double_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.sql(CREATE);
    let known = Mutex::new(Known::default());
    let mut rng = StdRng::seed_from_u64(9);
    for round in 0..KILLS {
        let before = known.lock().unwrap().acknowledged.len();
        let wanted = before + rng.random_range(1..30);
        let spins = rng.random_range(0..3_000_000_u32);
        std::thread::scope(|clients| {
            for client in 0..CLIENTS {
                let (address, known) = (server.address.clone(), &known);
                clients.spawn(move || insert_until_killed(&address, client, round, known));
            }
            // Some inserts in, at no particular point of the next ones.
            while known.lock().unwrap().acknowledged.len() < wanted {
                assert!(server.process.try_wait().unwrap().is_none(), "the server ended by itself");
                std::thread::yield_now();
            }
            for _ in 0..spins {
                std::hint::spin_loop();
            }
            server.process.kill().unwrap();
        });
        server.process.wait().unwrap();
        server = Server::start(folder.path());
        check(&server, &known.lock().unwrap(), round);
    }
    let known = known.into_inner().unwrap();
    println!(
        "{} inserts acknowledged, {} not, over {KILLS} kills",
        known.acknowledged.len(),
        known.tried.len() - known.acknowledged.len()
    );
    server.kill();
}

/// Makes the table; it is there again after a restart without being made.
const CREATE: &str = "CREATE EXTERNAL TABLE events (id BIGINT NOT NULL, batch BIGINT) \
     STORED AS DELTA PARTITIONED BY (id) OPTIONS ('partitions' '3') LOCATION 'events'";
