//! Where the API of Kubernetes is, and how to prove who asks: from the pod that this process runs in, or from a
//! kubeconfig file.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Identity};
use serde::Deserialize;
use url::Url;

use crate::cluster::provider::ProviderError;

/// What Kubernetes puts into every pod that has a service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API is reached.
pub(super) struct Access {
    /// Where it is.
    pub(super) server: Url,
    /// The namespace that is meant if none is named.
    pub(super) namespace: String,
    /// Whom to believe that it is the API; those of the system if there are none.
    pub(super) authorities: Vec<Certificate>,
    /// Our certificate with its key.
    pub(super) identity: Option<Identity>,
    /// Our token.
    pub(super) token: Token,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({} as {:?})", self.server, self.token)
    }
}

/// Says who asks.
pub(super) enum Token {
    /// Nothing does, or a certificate.
    None,
    /// This text.
    Text(String),
    /// What stands in a file at the time: those of service accounts are replaced every hour.
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no token"),
            // It is a secret.
            Self::Text(_) => f.write_str("a token"),
            Self::File(path) => write!(f, "the token in {}", path.display()),
        }
    }
}

impl Access {
    /// From the file, or if it is empty from the pod.
    ///
    /// # Errors
    /// [`ProviderError::NoAccess`] says what is missing.
    pub(super) fn find(kubeconfig: &Path) -> Result<Self, ProviderError> {
        let found = match kubeconfig.as_os_str().is_empty() {
            true => of_pod(|name| std::env::var(name).ok(), Path::new(ACCOUNT)),
            false => of_file(kubeconfig),
        };
        found.map_err(|reason| ProviderError::NoAccess { reason })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn authorities(pem: &[u8], from: &str) -> Result<Vec<Certificate>, String> {
    let found = Certificate::from_pem_bundle(pem).map_err(|error| format!("{from}: {error}"))?;
    // A bundle without certificates would be no reason to believe anybody.
    if found.is_empty() { Err(format!("{from}: no certificate in it")) } else { Ok(found) }
}

/// From what a pod with a service account finds in its environment and in the folder `account`.
fn of_pod(variable: impl Fn(&str) -> Option<String>, account: &Path) -> Result<Access, String> {
    let variable = |name: &str| {
        let missing = || {
            format!("{name} is not set, so this is no pod of Kubernetes; set provider.kubeconfig")
        };
        variable(name).filter(|value| !value.is_empty()).ok_or_else(missing)
    };
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let address = format!("https://{host}:{port}");
    let server = Url::parse(&address).map_err(|error| format!("{address}: {error}"))?;
    let (token, root) = (account.join("token"), account.join("ca.crt"));
    // Read here for the error only: it is read anew for each request.
    read(&token).map_err(|reason| format!("{reason}; does the pod have a service account?"))?;
    let namespace = read(&account.join("namespace"))?;
    Ok(Access {
        server,
        namespace: String::from_utf8_lossy(&namespace).trim().to_owned(),
        authorities: authorities(&read(&root)?, &root.display().to_string())?,
        identity: None,
        token: Token::File(token),
    })
}

/// The parts of a kubeconfig file that are gone by.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<NamedContext>,
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Debug, Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
    namespace: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
    username: Option<String>,
}

fn of_file(path: &Path) -> Result<Access, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = String::from_utf8(read(path)?).map_err(|error| named(&error))?;
    let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|error| named(&error))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    of_kubeconfig(config, folder).map_err(|error| named(&error))
}

fn of_kubeconfig(config: Kubeconfig, folder: &Path) -> Result<Access, String> {
    let missing = |what: &str, name: &str| format!("there is no {what} {name:?} in it");
    let current = config.current_context;
    let context = config.contexts.into_iter().find(|named| named.name == current);
    let context = context.ok_or_else(|| missing("context", &current))?.context;
    let cluster = config.clusters.into_iter().find(|named| named.name == context.cluster);
    let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster;
    let user = match &context.user {
        Some(name) => {
            let user = config.users.into_iter().find(|named| named.name == *name);
            user.ok_or_else(|| missing("user", name))?.user
        }
        None => User::default(),
    };
    if cluster.insecure_skip_tls_verify {
        return Err("insecure-skip-tls-verify is not supported".to_owned());
    }
    let server = Url::parse(&cluster.server)
        .map_err(|error| format!("{:?} is no address of a server: {error}", cluster.server))?;
    let root = part(cluster.certificate_authority_data, cluster.certificate_authority, folder)?;
    let authorities = match root {
        Some(pem) => authorities(&pem, "certificate-authority")?,
        None => vec![],
    };
    let namespace = context.namespace.unwrap_or_else(|| "default".to_owned());
    let (identity, token) = (identity(&user, folder)?, token(user, folder)?);
    Ok(Access { server, namespace, authorities, identity, token })
}

fn token(user: User, folder: &Path) -> Result<Token, String> {
    let other = [
        ("exec", user.exec.is_some()),
        ("auth-provider", user.auth_provider.is_some()),
        ("username", user.username.is_some()),
    ];
    let other = other.into_iter().find_map(|(name, is_there)| is_there.then_some(name));
    match (user.token_file, user.token, other) {
        (Some(file), ..) => Ok(Token::File(folder.join(file))),
        (None, Some(text), _) => Ok(Token::Text(text)),
        (None, None, Some(other)) => {
            Err(format!("users with {other} are not supported; use a token or a certificate"))
        }
        (None, None, None) => Ok(Token::None),
    }
}

fn identity(user: &User, folder: &Path) -> Result<Option<Identity>, String> {
    let User { client_certificate_data, client_certificate, client_key_data, client_key, .. } =
        user;
    let certificate = part(client_certificate_data.clone(), client_certificate.clone(), folder)?;
    let key = part(client_key_data.clone(), client_key.clone(), folder)?;
    match (certificate, key) {
        (Some(mut pem), Some(key)) => {
            pem.push(b'\n');
            pem.extend(key);
            let identity = Identity::from_pem(&pem);
            identity.map(Some).map_err(|error| format!("client-certificate: {error}"))
        }
        (None, None) => Ok(None),
        _ => Err("client-certificate and client-key belong together".to_owned()),
    }
}

/// What stands in the file itself, or in one that it names.
fn part(
    data: Option<String>,
    file: Option<PathBuf>,
    folder: &Path,
) -> Result<Option<Vec<u8>>, String> {
    match (data, file) {
        (Some(data), _) => {
            let bytes = STANDARD.decode(data.trim());
            bytes.map(Some).map_err(|error| format!("data that is no base64: {error}"))
        }
        (None, Some(file)) => read(&folder.join(file)).map(Some),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: here
contexts:
- name: there
  context: {cluster: far, user: nobody}
- name: here
  context: {cluster: near, user: me, namespace: data}
clusters:
- name: near
  cluster: {server: 'https://10.0.0.1:6443'}
users:
- name: me
  user: {token: secret}
";

    fn error(text: &str) -> String {
        let config = serde_saphyr::from_str(text).unwrap();
        of_kubeconfig(config, Path::new("/nowhere")).unwrap_err()
    }

    #[test]
    fn a_kubeconfig_says_where_who_and_in_which_namespace() {
        let config = serde_saphyr::from_str(KUBECONFIG).unwrap();
        let access = of_kubeconfig(config, Path::new("/nowhere")).unwrap();
        assert_eq!(access.server.as_str(), "https://10.0.0.1:6443/");
        assert_eq!(access.namespace, "data");
        assert!(!format!("{access:?}").contains("secret"), "tokens are not for logs");
        assert!(matches!(access.token, Token::Text(text) if text == "secret"));
        let file = KUBECONFIG.replace("token: secret", "tokenFile: a/token");
        let access =
            of_kubeconfig(serde_saphyr::from_str(&file).unwrap(), Path::new("/b")).unwrap();
        assert!(matches!(access.token, Token::File(path) if path == Path::new("/b/a/token")));
    }

    #[test]
    fn what_is_missing_or_not_supported_in_a_kubeconfig_is_named() {
        let changed = |from: &str, to: &str| error(&KUBECONFIG.replace(from, to));
        assert_eq!(changed("context: here", "context: x"), "there is no context \"x\" in it");
        assert_eq!(changed("cluster: near", "cluster: x"), "there is no cluster \"x\" in it");
        assert_eq!(changed("user: me", "user: x"), "there is no user \"x\" in it");
        assert_eq!(
            changed("{token: secret}", "{exec: {command: aws}}"),
            "users with exec are not supported; use a token or a certificate"
        );
        assert_eq!(
            changed("6443'}", "6443', insecure-skip-tls-verify: true}"),
            "insecure-skip-tls-verify is not supported"
        );
        assert!(changed("6443'}", "6443', certificate-authority: ca}").contains("/nowhere/ca"));
        assert!(changed("6443'}", "6443', certificate-authority-data: '?'}").contains("base64"));
        assert_eq!(
            changed("{token: secret}", "{client-certificate-data: YQ==}"),
            "client-certificate and client-key belong together"
        );
    }

    #[test]
    fn a_pod_without_a_service_account_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let outside = of_pod(|_| None, folder.path()).unwrap_err();
        assert!(outside.starts_with("KUBERNETES_SERVICE_HOST is not set"), "{outside}");
        let variable =
            |name: &str| Some(if name.ends_with("HOST") { "fd00::1" } else { "443" }.to_owned());
        let without = of_pod(variable, folder.path()).unwrap_err();
        assert!(without.ends_with("does the pod have a service account?"), "{without}");
        for (file, text) in [("token", "t"), ("namespace", "data\n"), ("ca.crt", "no PEM")] {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let empty = of_pod(variable, folder.path()).unwrap_err();
        assert!(empty.contains("ca.crt: no certificate in it"), "{empty}");
    }
}
