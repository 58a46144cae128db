//! KEDA asks how many nodes the forecast needs. Its messages are written down here once more, as KEDA has them.

use std::collections::HashMap;

use foreshard::Engine;
use foreshard::serve::scaler::ScalerServer;
use foreshard_policy::allocate::nodes_within;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::rig::Rig;
use crate::support::runtime::run;

#[derive(Clone, PartialEq, Message)]
struct Object {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Active {
    #[prost(bool, tag = "1")]
    result: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    whole: i64,
    #[prost(double, tag = "3")]
    number: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Numbers {
    #[prost(message, repeated, tag = "1")]
    numbers: Vec<Number>,
}

#[derive(Clone, PartialEq, Message)]
struct Wanted {
    #[prost(message, optional, tag = "1")]
    object: Option<Object>,
    #[prost(string, tag = "2")]
    name: String,
}

/// A trigger with this metadata.
fn object(metadata: &[(&str, &str)]) -> Object {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Object { name: "nodes".to_owned(), namespace: "data".to_owned(), metadata: metadata.collect() }
}

struct Keda(Grpc<Channel>);

impl Keda {
    async fn of(server: &ScalerServer) -> Self {
        let url = format!("http://{}", server.address());
        Self(Grpc::new(Channel::from_shared(url).unwrap().connect().await.unwrap()))
    }

    async fn ask<Q, A>(&mut self, method: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::try_from(format!("/externalscaler.ExternalScaler/{method}"));
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.0.unary(Request::new(question), path.unwrap(), codec).await?;
        Ok(answer.into_inner())
    }

    /// The number of nodes that is asked for.
    async fn nodes(&mut self, lead_ticks: &str) -> Number {
        let object = Some(object(&[("leadTicks", lead_ticks), ("scalerAddress", "here:1")]));
        let wanted = Wanted { object, name: "foreshard-nodes".to_owned() };
        let numbers: Numbers = self.ask("GetMetrics", wanted).await.unwrap();
        assert_eq!(numbers.numbers.len(), 1);
        numbers.numbers[0].clone()
    }
}

async fn serve(engine: &Engine) -> ScalerServer {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    ScalerServer::start(engine.clone(), listener).unwrap()
}

/// A tick is so short that one query keeps many CPUs busy for it, and the server starts no nodes by itself.
const SETTINGS: [(&str, &str); 3] =
    [("loop.tick-ms", "1"), ("loop.monitor.current-ticks", "1"), ("loop.allocate.nodes-max", "1")];

const LOAD: &str = "SELECT max(levenshtein_similarity(repeat(concat('name ', CAST(id AS VARCHAR)), 20), \
     repeat('abcdefghij', 16))) FROM t";

#[test]
fn keda_is_told_how_many_nodes_are_needed_besides_those_of_the_server() {
    run(async {
        let rig = Rig::start_with(1, 2, &SETTINGS, vec![]).await;
        let server = serve(&rig.engine).await;
        let mut keda = Keda::of(&server).await;
        let lead = || object(&[("leadTicks", "4")]);
        let specs: Numbers = keda.ask("GetMetricSpec", lead()).await.unwrap();
        let one = Number { name: "foreshard-nodes".to_owned(), whole: 1, number: 1.0 };
        assert_eq!(specs.numbers, [one], "a pod carries one node");
        rig.engine.tick().await;
        assert_eq!(keda.nodes("4").await.whole, 0);
        let active: Active = keda.ask("IsActive", lead()).await.unwrap();
        assert!(!active.result, "the server is enough");
        rig.ask(LOAD).await.unwrap();
        rig.engine.tick().await;
        let config = rig.engine.control_loop().config();
        let all = nodes_within(&rig.engine.forecast(), 4, &config);
        assert!(all > 1, "a load for more than one node");
        let told = keda.nodes("4").await;
        assert_eq!((told.whole, told.number), (i64::from(all) - 1, f64::from(all) - 1.0));
        let active: Active = keda.ask("IsActive", lead()).await.unwrap();
        assert!(active.result);
        server.stop().await;
    });
}

#[test]
fn keda_is_told_at_once_when_the_first_node_is_needed() {
    run(async {
        let rig = Rig::start_with(1, 2, &SETTINGS, vec![]).await;
        let server = serve(&rig.engine).await;
        let mut keda = Keda::of(&server).await;
        keda.0.ready().await.unwrap();
        let path = PathAndQuery::from_static("/externalscaler.ExternalScaler/StreamIsActive");
        let codec = ProstCodec::<Object, Active>::default();
        let request = Request::new(object(&[("leadTicks", "12")]));
        let mut changes = keda.0.server_streaming(request, path, codec).await.unwrap().into_inner();
        let mut said = vec![changes.message().await.unwrap().unwrap().result];
        rig.ask(LOAD).await.unwrap();
        rig.engine.tick().await;
        said.push(changes.message().await.unwrap().unwrap().result);
        // Nothing is called any more.
        rig.engine.tick().await;
        rig.engine.tick().await;
        said.push(changes.message().await.unwrap().unwrap().result);
        assert_eq!(said, [false, true, false]);
        server.stop().await;
    });
}

#[test]
fn a_trigger_without_a_lead_time_is_told_what_is_missing() {
    run(async {
        let rig = Rig::start(1, 2).await;
        let server = serve(&rig.engine).await;
        let mut keda = Keda::of(&server).await;
        let bound = "the ticks of 1000 ms that a pod takes until it is a node, 1 to 12 \
             (loop.horizon-ticks)";
        for (metadata, text) in [
            (
                vec![("leadTick", "3")],
                "[FS-SCALER-1] the trigger of data/nodes has no leadTicks in its metadata; it must be",
            ),
            (
                vec![("leadTicks", "soon")],
                "[FS-SCALER-2] leadTicks of data/nodes is \"soon\"; it must be",
            ),
            (
                vec![("leadTicks", "0")],
                "[FS-SCALER-2] leadTicks of data/nodes is \"0\"; it must be",
            ),
            (
                vec![("leadTicks", "13")],
                "[FS-SCALER-2] leadTicks of data/nodes is \"13\"; it must be",
            ),
        ] {
            for method in ["IsActive", "GetMetricSpec", "StreamIsActive"] {
                let answer = keda.ask::<_, Active>(method, object(&metadata)).await;
                let status = answer.unwrap_err();
                assert_eq!(status.code(), tonic::Code::InvalidArgument);
                assert_eq!(status.message(), format!("{text} {bound}"));
            }
        }
        let nothing = Wanted { object: None, name: String::new() };
        let status = keda.ask::<_, Numbers>("GetMetrics", nothing).await.unwrap_err();
        assert!(status.message().starts_with("[FS-SCALER-3] "), "{status}");
        server.stop().await;
    });
}
