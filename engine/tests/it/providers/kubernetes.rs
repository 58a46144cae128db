//! Nodes that are pods: an API of Kubernetes that answers as the real one is documented to, and a kubelet that
//! starts a process for each pod.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use foreshard::Config;
use foreshard_actors::ports::NodeProvider;
use serde_json::{Value, json};

use super::{Cluster, HERE, check, failure_of_the_only_addition, questions};
use crate::support::runtime::run;
use crate::support::setups::engine_with;

const SET: &str = "foreshard-node";
const SCALE: &str = "/apis/apps/v1/namespaces/data/statefulsets/foreshard-node/scale";

/// What the API says to one request instead of doing it.
#[derive(Clone)]
enum Instead {
    /// A status with a reason and a message.
    Refuse(u16, &'static str, &'static str),
    /// Nothing, and it keeps the connection.
    Silence,
    /// It is done.
    Done,
}
use Instead::{Done, Refuse, Silence};

const FORBIDDEN: Instead = Refuse(
    403,
    "Forbidden",
    "statefulsets.apps \"foreshard-node\" is forbidden: User \"system:serviceaccount:data:foreshard\" cannot access it",
);
const CONFLICT: Instead = Refuse(
    409,
    "Conflict",
    "Operation cannot be fulfilled on statefulsets.apps \"foreshard-node\": the object has been modified",
);

#[derive(Default)]
struct State {
    replicas: u32,
    version: u32,
    instead: VecDeque<Instead>,
    /// Verb, path and body of each request.
    requests: Vec<(String, String, String)>,
    silent: Vec<TcpStream>,
    /// Where pods join; none start as long as there is no such place.
    join: Option<SocketAddr>,
    pods: BTreeMap<u32, Child>,
}

impl State {
    /// As a kubelet does: starts the pods that are wanted, and ends those that are not.
    fn scale(&mut self, replicas: u32, folder: &Path) {
        (self.replicas, self.version) = (replicas, self.version + 1);
        let gone: Vec<u32> = self.pods.keys().copied().filter(|pod| *pod >= replicas).collect();
        for pod in gone {
            let mut process = self.pods.remove(&pod).unwrap();
            process.kill().unwrap();
            process.wait().unwrap();
        }
        let Some(join) = self.join else { return };
        for pod in 0..replicas {
            self.pods.entry(pod).or_insert_with(|| {
                Command::new(env!("CARGO_BIN_EXE_foreshard"))
                    .args(["node", "--join", &join.to_string(), "--name"])
                    .args([format!("{SET}-{pod}"), "--until-stdin-closes".to_owned()])
                    .current_dir(folder)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            });
        }
    }

    fn answer(
        &mut self,
        verb: &str,
        path: &str,
        body: &str,
        folder: &Path,
    ) -> Option<(u16, Value)> {
        self.requests.push((verb.to_owned(), path.to_owned(), body.to_owned()));
        match self.instead.pop_front().unwrap_or(Done) {
            Silence => return None,
            Refuse(code, reason, message) => return Some((code, status(code, reason, message))),
            Done => {}
        }
        if path != SCALE {
            return Some((404, status(404, "NotFound", "not found")));
        }
        if verb == "PATCH" {
            let patch: Value = serde_json::from_str(body).unwrap();
            let version = patch["metadata"]["resourceVersion"].as_str().unwrap();
            if version != self.version.to_string() {
                return Some((409, status(409, "Conflict", "the object has been modified")));
            }
            let replicas = patch["spec"]["replicas"].as_u64().unwrap();
            self.scale(u32::try_from(replicas).unwrap(), folder);
        }
        let (replicas, version) = (self.replicas, self.version.to_string());
        // The number of replicas is left out where it is 0.
        let spec = if replicas == 0 { json!({}) } else { json!({ "replicas": replicas }) };
        Some((
            200,
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {
                    "name": SET, "namespace": "data", "resourceVersion": version,
                    "uid": "5d6cbd6e-9b41-4a6e-8d8d-0ef1e7a4b9a1",
                    "creationTimestamp": "2026-11-30T12:00:00Z"
                },
                "spec": spec,
                "status": { "replicas": replicas, "selector": "app=foreshard,role=node" }
            }),
        ))
    }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
        "details": { "name": SET, "group": "apps", "kind": "statefulsets" }
    })
}

/// A server that ends with the test.
struct Api {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Api {
    fn start(instead: &[Instead]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let instead = instead.iter().cloned().collect();
        let state = Arc::new(Mutex::new(State { version: 1000, instead, ..State::default() }));
        let folder = tempfile::tempdir().unwrap();
        let (served, place) = (Arc::clone(&state), folder.path().to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &served, &place);
            }
        });
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             contexts:\n- name: test\n  context: {{cluster: test, user: test, namespace: data}}\n\
             clusters:\n- name: test\n  cluster: {{server: 'http://{address}'}}\n\
             users:\n- name: test\n  user: {{token: the-token}}\n"
        );
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        Self { state, address, folder }
    }

    async fn cluster(&self, more: &[(&str, &str)]) -> Cluster {
        let kubeconfig = self.folder.path().join("kubeconfig");
        let mut settings = vec![
            ("loop.allocate.provider", "kubernetes"),
            ("provider.kubeconfig", kubeconfig.to_str().unwrap()),
        ];
        settings.extend(more);
        let cluster = Cluster::start_with(&settings).await;
        self.state.lock().unwrap().join = Some(cluster.control.address());
        cluster
    }

    /// Verbs and bodies of the requests so far.
    fn requests(&self) -> Vec<(String, String)> {
        let state = self.state.lock().unwrap();
        let requests = state.requests.iter();
        requests
            .map(|(verb, path, body)| {
                assert_eq!(path, SCALE);
                (verb.clone(), body.clone())
            })
            .collect()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        for process in self.state.lock().unwrap().pods.values_mut() {
            // It may be dead already.
            let _dead = process.kill();
            let _reaped = process.wait();
        }
    }
}

/// Answers one request and closes the connection.
fn serve(mut stream: TcpStream, state: &Mutex<State>, folder: &Path) {
    let mut request = Vec::new();
    let (head, length) = loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap_or(0);
        if count == 0 {
            return;
        }
        request.extend_from_slice(&some[..count]);
        let text = String::from_utf8(request.clone()).unwrap();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
        break (text[..head.len()].to_owned(), length);
    };
    while request.len() < head.len() + 4 + length {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap();
        request.extend_from_slice(&some[..count]);
    }
    let lower = head.to_lowercase();
    assert!(lower.contains("authorization: bearer the-token"), "{head}");
    let is_patch = head.starts_with("PATCH");
    assert_eq!(lower.contains("content-type: application/merge-patch+json"), is_patch, "{head}");
    let mut words = head.split(' ');
    let (verb, path) = (words.next().unwrap(), words.next().unwrap());
    let body = String::from_utf8(request[head.len() + 4..].to_vec()).unwrap();
    let mut state = state.lock().unwrap();
    let Some((code, answer)) = state.answer(verb, path, &body, folder) else {
        state.silent.push(stream);
        return;
    };
    let answer = answer.to_string();
    let length = answer.len();
    let answer = format!(
        "HTTP/1.1 {code} Of Kubernetes\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
    );
    // Whoever gave up does not want to know.
    let _unread = stream.write_all(answer.as_bytes());
}

fn wish(version: u32, replicas: u32) -> (String, String) {
    let (version, replicas) = (version.to_string(), replicas);
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}});
    ("PATCH".to_owned(), patch.to_string())
}

fn look() -> (String, String) {
    ("GET".to_owned(), String::new())
}

#[test]
fn a_load_gets_one_more_pod_and_gives_it_back_and_every_answer_is_right() {
    run(async {
        // The first wish meets another one, so it is made again.
        let api = Api::start(&[Done, CONFLICT]);
        let cluster = api.cluster(&[]).await;
        let engine = cluster.engine();
        let right = [questions(engine, true).await, questions(engine, false).await].concat();
        cluster.turn_until(2, true).await;
        assert_eq!(api.requests(), [look(), wish(1000, 1), look(), wish(1000, 1)]);
        let nodes = engine.placement().nodes;
        let (pod, view) = nodes.iter().find(|(node, _)| **node != HERE).unwrap();
        assert!(!view.joined && view.leaves == 1, "it is ours: {view:?}");
        cluster.give_all_to(*pod).await;
        check(engine, &right).await;
        cluster.turn_until(1, false).await;
        assert_eq!(engine.members().nodes(), [HERE]);
        assert_eq!(api.requests()[4..], [look(), wish(1001, 0)]);
        check(engine, &right).await;
        cluster.stop().await;
    });
}

#[test]
fn what_kubernetes_says_is_a_failed_step_that_names_what_is_missing() {
    run(async {
        let unauthorized = Refuse(401, "Unauthorized", "Unauthorized");
        let not_found = Refuse(404, "NotFound", "statefulsets.apps \"foreshard-node\" not found");
        let broken = Refuse(500, "InternalError", "etcdserver: request timed out");
        let conflicts = vec![Done, CONFLICT, Done, CONFLICT, Done, CONFLICT];
        let cases: [(Vec<Instead>, &str, &str); 7] = [
            (vec![unauthorized], "FS-PROVIDER-7", "the token or certificate is not valid"),
            (vec![FORBIDDEN], "FS-PROVIDER-8", "needs the verb get on statefulsets/scale of apps"),
            (vec![Done, FORBIDDEN], "FS-PROVIDER-8", "needs the verb patch on statefulsets/scale"),
            (vec![not_found], "FS-PROVIDER-9", "no StatefulSet foreshard-node in namespace data"),
            (conflicts, "FS-PROVIDER-10", "is there an autoscaler for it?"),
            (vec![Silence], "FS-PROVIDER-11", "did not answer within 1000 ms"),
            (vec![broken], "FS-PROVIDER-13", "status 500: etcdserver: request timed out"),
        ];
        for (instead, code, text) in cases {
            let requests = instead.len();
            let api = Api::start(&instead);
            let cluster = api.cluster(&[("provider.api-seconds", "1")]).await;
            let (found, reason) = failure_of_the_only_addition(&cluster).await;
            assert_eq!(found, code, "{reason}");
            assert!(reason.contains(text), "{reason}");
            assert_eq!(api.requests().len(), requests, "{code}");
            assert_eq!(cluster.engine().members().nodes(), [HERE]);
            cluster.stop().await;
        }
    });
}

#[test]
fn a_pod_that_does_not_come_is_named_and_no_second_one_is_asked_for() {
    run(async {
        let api = Api::start(&[]);
        let cluster = api.cluster(&[("provider.start-seconds", "1")]).await;
        api.state.lock().unwrap().join = None;
        let (code, reason) = failure_of_the_only_addition(&cluster).await;
        assert_eq!(code, "FS-PROVIDER-4");
        assert!(
            reason.starts_with("pod foreshard-node-0 in namespace data did not join"),
            "{reason}"
        );
        // After a rest it is waited for again.
        for turn in 0..8 {
            cluster.work(100 + turn).await;
            cluster.engine().tick().await;
        }
        assert_eq!(api.requests(), [look(), wish(1000, 1), look()]);
        cluster.stop().await;
    });
}

#[test]
fn who_cannot_reach_kubernetes_is_told_at_start_or_at_the_step() {
    run(async {
        let nowhere =
            [("loop.allocate.provider", "kubernetes"), ("provider.kubeconfig", "/no/file")];
        let error = engine_with(1, "reactive", &nowhere).await.err().unwrap().to_string();
        assert!(error.starts_with("no way to Kubernetes: /no/file: "), "{error}");
        let api = Api::start(&[]);
        // Nobody listens there.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let kubeconfig = api.folder.path().join("kubeconfig");
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let text = text.replace(&api.address.to_string(), &free.to_string());
        std::fs::write(&kubeconfig, text).unwrap();
        let cluster = api.cluster(&[]).await;
        let (code, reason) = failure_of_the_only_addition(&cluster).await;
        assert_eq!(code, "FS-PROVIDER-12", "{reason}");
        assert!(reason.contains(&format!("http://{free} cannot be reached")), "{reason}");
        cluster.stop().await;
    });
}

/// The documents of a manifest.
fn manifest(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes").join(name);
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_manifests_say_what_the_program_understands() {
    let documents = manifest("foreshard.yaml");
    let find = |kind: &str, name: &str| {
        let is_it = |it: &&Value| it["kind"] == kind && it["metadata"]["name"] == name;
        documents.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let rule = &find("Role", "foreshard")["rules"][0];
    let (set, config) = (SET, Config::default());
    assert_eq!(config.provider().stateful_set(), set);
    assert_eq!(
        *rule,
        json!({
            "apiGroups": ["apps"], "resources": ["statefulsets/scale"],
            "resourceNames": [set], "verbs": ["get", "patch"]
        })
    );
    let nodes = find("StatefulSet", set);
    assert!(nodes["spec"].get("replicas").is_none(), "applying it again would change the number");
    for (set, ours) in [(find("StatefulSet", "foreshard"), "serve"), (nodes, "node")] {
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let words = container["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap());
        let words: Vec<&str> = std::iter::once("foreshard").chain(words).collect();
        assert_eq!(words[1], ours);
        <foreshard::cli::Cli as clap::Parser>::try_parse_from(words).unwrap();
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        assert_eq!(set["spec"]["selector"]["matchLabels"], *labels);
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let Some(key) = name.strip_prefix("FORESHARD_") else { continue };
            let key = key.to_lowercase().replace("__", ".").replace('_', "-");
            let value = variable["value"].as_str().unwrap().replace("$(POD_IP)", "10.0.0.1");
            config.set(&key, &value).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    let scaled = manifest("keda.yaml").remove(0);
    assert_eq!(scaled["spec"]["scaleTargetRef"]["name"], set);
    let metadata = &scaled["spec"]["triggers"][0]["metadata"];
    let lead: usize = metadata[foreshard::serve::scaler::LEAD].as_str().unwrap().parse().unwrap();
    assert!((1..=config.loop_config().horizon_ticks()).contains(&lead));
}
