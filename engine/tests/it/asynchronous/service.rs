//! A model behind HTTP: a server that counts what it is asked, and the functions that ask it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, exec_datafusion_err, exec_err};
use datafusion::logical_expr::async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, create_udf,
};
use datafusion::prelude::SessionContext;
use foreshard::{Card, CostClass};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the model answers; NULL is a question, too.
fn answer(question: Option<i64>) -> Option<i64> {
    match question {
        None => Some(-1),
        Some(value) if value % 13 == 0 => None,
        Some(value) => Some(value % 50 * 3 + 1),
    }
}

/// The model as an ordinary function.
pub(super) fn formula(name: &str, volatility: Volatility) -> ScalarUDF {
    let body = Arc::new(|args: &[ColumnarValue]| {
        let asked = ColumnarValue::values_to_arrays(args)?;
        let asked = asked[0].as_primitive::<Int64Type>();
        Ok(ColumnarValue::Array(Arc::new(asked.iter().map(answer).collect::<Int64Array>())))
    });
    create_udf(name, vec![DataType::Int64], DataType::Int64, volatility, body)
}

/// Plain DataFusion over the rows of the rig, with more functions.
pub(super) fn of_plain(register: impl FnOnce(&SessionContext)) -> SessionContext {
    let (context, _) = crate::rig::plain();
    register(&context);
    context
}

/// The server.
pub(super) struct Service {
    address: SocketAddr,
    seen: Arc<Seen>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Rows of each request.
    requests: Mutex<Vec<usize>>,
    open: AtomicUsize,
    /// Requests that are open for each path, and the most there were.
    of_path: Mutex<HashMap<String, (usize, usize)>>,
    failing: AtomicUsize,
    hangs: AtomicBool,
}

/// One request, however it ends.
struct Open(Arc<Seen>, String);

impl Open {
    fn new(seen: &Arc<Seen>, path: &str) -> Self {
        seen.open.fetch_add(1, Ordering::SeqCst);
        let mut of_path = seen.of_path.lock().unwrap();
        let (open, most) = of_path.entry(path.to_owned()).or_default();
        *open += 1;
        *most = (*most).max(*open);
        Self(Arc::clone(seen), path.to_owned())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        if let Some((open, _)) = self.0.of_path.lock().unwrap().get_mut(&self.1) {
            *open -= 1;
        }
    }
}

impl Service {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let mut serving = JoinSet::new();
        let shared = Arc::clone(&seen);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let seen = Arc::clone(&shared);
                connections.spawn(async move { drop(serve(connection, &seen).await) });
            }
        });
        Self { address, seen, _serving: serving }
    }

    /// A function that asks this server.
    pub(super) fn function(&self, name: &str, volatility: Volatility) -> (Card, AsyncScalarUDF) {
        let card = Card::immutable(name, "1", CostClass::Costly, "A model.", format!("{name}(1)"));
        let signature = Signature::exact(vec![DataType::Int64], volatility);
        let over_http = OverHttp { name: name.to_owned(), signature, address: self.address };
        (card.with_volatility(volatility), AsyncScalarUDF::new(Arc::new(over_http)))
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.requests.lock().unwrap().len()
    }

    /// Rows of the requests after the first so many.
    pub(super) fn rows_of_requests_from(&self, first: usize) -> Vec<usize> {
        let requests = self.seen.requests.lock().unwrap();
        requests[first..].to_vec()
    }

    /// Requests that are not answered yet and whose client is still there.
    pub(super) fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    /// The most requests of one function at a time.
    pub(super) fn open_max(&self, name: &str) -> usize {
        self.seen.of_path.lock().unwrap().get(&format!("/{name}")).map_or(0, |(_, most)| *most)
    }

    pub(super) fn fail_next(&self, requests: usize) {
        self.seen.failing.store(requests, Ordering::SeqCst);
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.seen.hangs.store(hangs, Ordering::SeqCst);
    }
}

/// Reads one request, of a number or nothing per line, and answers it.
async fn serve(mut connection: TcpStream, seen: &Arc<Seen>) -> std::io::Result<()> {
    let mut bytes = vec![];
    let (head, body) = loop {
        let mut more = [0; 4_096];
        let count = connection.read(&mut more).await?;
        if count == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&more[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1).unwrap();
        if body.len() == length.split("\r\n").next().unwrap().parse::<usize>().unwrap() {
            break (head.to_owned(), body.to_owned());
        }
    };
    let questions: Vec<Option<i64>> = body.lines().map(|line| line.parse().ok()).collect();
    let path = head.split(' ').nth(1).unwrap();
    let open = Open::new(seen, path);
    seen.requests.lock().unwrap().push(questions.len());
    // Others get their chance to be on the way as well.
    tokio::time::sleep(Duration::from_millis(5)).await;
    if seen.hangs.load(Ordering::SeqCst) {
        // Until the client hangs up.
        drop(connection.read_exact(&mut [0; 1]).await);
        return Ok(());
    }
    let less = |failing: usize| failing.checked_sub(1);
    let fails = seen.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
    let line = |value: Option<i64>| value.map_or("\n".to_owned(), |value| format!("{value}\n"));
    let answers: String = questions.into_iter().map(answer).map(line).collect();
    let (status, body) = match fails {
        true => ("503 Service Unavailable", ""),
        false => ("200 OK", answers.as_str()),
    };
    // Before the client can know, and ask the next one.
    drop(open);
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection.write_all(answer.as_bytes()).await
}

/// Asks the server about each row.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OverHttp {
    name: String,
    signature: Signature,
    address: SocketAddr,
}

impl ScalarUDFImpl for OverHttp {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, _call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{} can only be awaited", self.name)
    }
}

#[async_trait::async_trait]
impl AsyncScalarUDFImpl for OverHttp {
    async fn invoke_async_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let asked = call.args[0].to_array(call.number_rows)?;
        let line = |value: Option<i64>| value.map_or("\n".to_owned(), |value| format!("{value}\n"));
        let body: String = asked.as_primitive::<Int64Type>().iter().map(line).collect();
        let mut connection = TcpStream::connect(self.address).await?;
        let head =
            format!("POST /{} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", self.name, body.len());
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(body.as_bytes()).await?;
        let mut bytes = vec![];
        connection.read_to_end(&mut bytes).await?;
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| exec_datafusion_err!("{} hung up", self.address))?;
        if !head.starts_with("HTTP/1.1 200") {
            return exec_err!("{}", head.lines().next().unwrap_or_default());
        }
        let answers: Int64Array = body.lines().map(|line| line.parse::<i64>().ok()).collect();
        Ok(ColumnarValue::Array(Arc::new(answers)))
    }
}
