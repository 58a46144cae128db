//! Traces, as a collector sees them: one complete tree for a query over two nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use foreshard::telemetry::Telemetry;
use foreshard::{Config, Engine};
use foreshard_actors::partitioning::Partitioning;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use crate::support::runtime;

const TRACE: &str = "5bf7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "a7ad6b7169203331";

/// Keeps every span that is sent to it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The attribute `key` of `span`, which is a whole number.
fn number(span: &Span, key: &str) -> i64 {
    let value = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = value.and_then(|attribute| attribute.value.as_ref()?.value.clone());
    match value {
        Some(Value::IntValue(number)) => number,
        // OpenTelemetry has no unsigned numbers: they come as text.
        Some(Value::StringValue(text)) => text.parse().unwrap(),
        other => panic!("{} has {key} {other:?}", span.name),
    }
}

/// The spans of one trace as a tree: every name with its ancestors' names, nearest last.
fn paths(spans: &[Span]) -> Vec<String> {
    let by_id: BTreeMap<String, &Span> =
        spans.iter().map(|span| (hex(&span.span_id), span)).collect();
    let path = |span: &Span| {
        let mut names = vec![span.name.clone()];
        let mut parent = hex(&span.parent_span_id);
        while let Some(above) = by_id.get(&parent) {
            names.push(above.name.clone());
            parent = hex(&above.parent_span_id);
        }
        names.push(if parent == CLIENT { "client".to_owned() } else { format!("?{parent}") });
        names.reverse();
        names.join(" > ")
    };
    spans.iter().map(path).collect()
}

/// The attribute `key` of `span`, which is text.
fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    let value = span.attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{} has {key} {other:?}", span.name),
    }
}

/// Each of `decided` decisions has a span of its own, linked to a scan of the query that caused it, or to
/// where it aggregated.
///
/// Spans of other tests' engines come too, for they share this process: those of `table` count.
fn decisions_are_linked_to_scans(spans: &[Span], table: &str, decided: usize) {
    let of_calls = ["partition_scan", "partial_states"];
    let scans: Vec<_> =
        spans.iter().filter(|span| of_calls.contains(&span.name.as_str())).collect();
    let decisions = spans.iter().filter(|span| span.name == "decision");
    let decisions: Vec<_> =
        decisions.filter(|span| text(span, "step").contains(&format!(" {table}/"))).collect();
    assert_eq!(decisions.len(), decided, "a span for each decision");
    for decision in decisions {
        assert_ne!(hex(&decision.trace_id), TRACE, "it is no part of the query");
        assert!(decision.parent_span_id.is_empty(), "{decision:?}");
        assert!(!decision.links.is_empty(), "{decision:?}");
        for link in &decision.links {
            assert_eq!(hex(&link.trace_id), TRACE);
            assert!(scans.iter().any(|scan| scan.span_id == link.span_id), "{link:?}");
        }
    }
}

#[test]
fn a_query_over_two_nodes_is_one_tree_from_the_client_to_the_function_calls() {
    runtime::run(async {
        let collector = Collector::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(
            Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)),
        );

        let config = Config::default()
            .with_nodes(2)
            .and_then(|config| config.with_partitions(2))
            .and_then(|config| config.set("telemetry.otlp-endpoint", &endpoint))
            .and_then(|config| config.set("loop.reshape.drop-below", "0.0001"))
            .and_then(|config| config.set("loop.reshape.copy-above", "0.001"))
            .unwrap();
        let (telemetry, layer) = Telemetry::layer(config.telemetry()).unwrap();
        // The process's only subscriber: spans are made on threads of all kinds.
        tracing::subscriber::set_global_default(Registry::default().with(layer)).unwrap();

        let engine = Engine::builder().config(config).manual_ticks(true).start().await.unwrap();
        let rows = engine.sql("SELECT value AS id, concat('http://h', value, '.org/') AS url FROM generate_series(1, 4000)");
        let rows = rows.await.unwrap();
        let schema = rows[0].schema();
        let by_id = Partitioning::Hash { columns: vec!["id".into()], partitions: 4 };
        engine.create_memory_table("traced_visits", schema, by_id, rows).await.unwrap();

        let traceparent = format!("00-{TRACE}-{CLIENT}-01");
        let session = engine.session().with_trace_parent(Some(traceparent));
        let sql = "SELECT url_host(url) AS host, count(*) FROM traced_visits GROUP BY 1";
        session.sql(sql).await.unwrap().collect().await.unwrap();
        // The load of the query makes the loop copy the partitions; the copies follow the second turn.
        engine.tick().await;
        engine.tick().await;
        let decided = engine.decisions();
        engine.shutdown().await.unwrap();
        telemetry.stop().await;

        let mut spans = collector.0.lock().unwrap().clone();
        assert!(decided.iter().any(|row| row.kind == "copy"), "{decided:?}");
        decisions_are_linked_to_scans(&spans, "traced_visits", decided.len());
        spans.retain(|span| hex(&span.trace_id) == TRACE);
        let mut paths = paths(&spans);
        paths.sort();
        let tree = paths.join("\n");
        assert!(paths.iter().all(|path| path.starts_with("client > query")), "{tree}");
        let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
        let sum = |name: &str, key: &str| -> i64 {
            spans.iter().filter(|span| span.name == name).map(|span| number(span, key)).sum()
        };
        assert_eq!((count("query"), count("plan")), (1, 1), "{tree}");
        assert!(count("task") >= 2, "a task on each of two nodes\n{tree}");
        assert_eq!(sum("partition_scan", "segments"), 4, "each partition is scanned once\n{tree}");
        assert_eq!(sum("function_call", "rows"), 4_000, "each row is computed once\n{tree}");
        let calls = paths.iter().filter(|path| path.ends_with("> function_call"));
        let mut within =
            calls.map(|path| path.starts_with("client > query > task > partition_scan"));
        assert!(within.all(|within| within), "{tree}");
    });
}
