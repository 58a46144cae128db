//! The two requests that are made to Kubernetes: how many replicas a StatefulSet has, and how many it shall
//! have. Both go to its subresource `scale`, so the role needs no more than that.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode, redirect};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::access::{Access, Token};
use crate::cluster::provider::ProviderError;

/// One StatefulSet, through the API.
#[derive(Debug)]
pub(super) struct Api {
    client: Client,
    token: Token,
    scale: Url,
    /// Its name and namespace, for errors.
    set: String,
    namespace: String,
    timeout: Duration,
}

/// How many replicas there shall be, and the version of that wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    /// The number.
    pub(super) replicas: u32,
    /// Changes with it.
    pub(super) version: String,
}

/// The parts of `autoscaling/v1` `Scale` that are gone by.
#[derive(Debug, Deserialize)]
struct ScaleObject {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Debug, Default, Deserialize)]
struct Spec {
    /// Absent if it is 0.
    #[serde(default)]
    replicas: u32,
}

/// What stands in the body of a refusal.
#[derive(Debug, Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

impl Api {
    /// The StatefulSet `set` in a namespace, or in that of `access` if it is empty.
    ///
    /// # Errors
    /// [`ProviderError::NoAccess`].
    pub(super) fn new(
        access: Access,
        (namespace, set): (&str, &str),
        timeout: Duration,
    ) -> Result<Self, ProviderError> {
        let no_access =
            |error: &dyn std::fmt::Display| ProviderError::NoAccess { reason: error.to_string() };
        let namespace = if namespace.is_empty() { access.namespace.as_str() } else { namespace };
        let mut client = Client::builder()
            .timeout(timeout)
            .redirect(redirect::Policy::none())
            // A token is for the API only.
            .no_proxy()
            .tls_built_in_root_certs(access.authorities.is_empty());
        for authority in access.authorities {
            client = client.add_root_certificate(authority);
        }
        if let Some(identity) = access.identity {
            client = client.identity(identity);
        }
        let mut scale = access.server.clone();
        let not_a_base = || no_access(&format!("{} is no address of a server", access.server));
        scale.path_segments_mut().map_err(|()| not_a_base())?.pop_if_empty().extend([
            "apis",
            "apps",
            "v1",
            "namespaces",
            namespace,
            "statefulsets",
            set,
            "scale",
        ]);
        Ok(Self {
            client: client.build().map_err(|error| no_access(&error))?,
            token: access.token,
            scale,
            set: set.to_owned(),
            namespace: namespace.to_owned(),
            timeout,
        })
    }

    /// Where it is, in words.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How many replicas there shall be.
    ///
    /// # Errors
    /// What Kubernetes says.
    pub(super) async fn scale(&self) -> Result<Scale, ProviderError> {
        self.send("get", self.request(Method::GET).await?).await
    }

    /// Wants so many replicas, if the wish of `version` is still the newest one.
    ///
    /// # Errors
    /// [`ProviderError::Conflict`] if it is not, or what Kubernetes says.
    pub(super) async fn set(&self, replicas: u32, version: &str) -> Result<Scale, ProviderError> {
        let patch =
            json!({ "metadata": { "resourceVersion": version }, "spec": { "replicas": replicas } });
        let request = self
            .request(Method::PATCH)
            .await?
            .header("content-type", "application/merge-patch+json")
            .body(patch.to_string());
        self.send("patch", request).await
    }

    async fn request(&self, method: Method) -> Result<RequestBuilder, ProviderError> {
        let request =
            self.client.request(method, self.scale.clone()).header("accept", "application/json");
        Ok(match &self.token {
            Token::None => request,
            Token::Text(token) => request.bearer_auth(token),
            Token::File(path) => {
                let unreadable = |error| ProviderError::NoAccess {
                    reason: format!("{}: {error}", path.display()),
                };
                let token = tokio::fs::read_to_string(path).await.map_err(unreadable)?;
                request.bearer_auth(token.trim())
            }
        })
    }

    async fn send(
        &self,
        verb: &'static str,
        request: RequestBuilder,
    ) -> Result<Scale, ProviderError> {
        let answer = request.send().await.map_err(|error| self.unanswered(&error))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| self.unanswered(&error))?;
        if !status.is_success() {
            let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            return Err(self.refused(verb, status, refusal.message));
        }
        let object: ScaleObject = serde_json::from_slice(&body).map_err(|error| {
            let message = format!("an answer that is no Scale: {error}");
            ProviderError::Failed { status: status.as_u16(), message }
        })?;
        let (replicas, version) = (object.spec.replicas, object.metadata.resource_version);
        Ok(Scale { replicas, version })
    }

    fn unanswered(&self, error: &reqwest::Error) -> ProviderError {
        use std::error::Error;
        if error.is_timeout() {
            let ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
            return ProviderError::Silent { server: self.server(), ms };
        }
        // The last of the causes is the one that says something.
        let mut cause: &dyn Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        ProviderError::Unreachable { server: self.server(), reason: cause.to_string() }
    }

    fn refused(&self, verb: &'static str, status: StatusCode, message: String) -> ProviderError {
        let (set, namespace) = (self.set.clone(), self.namespace.clone());
        match status {
            StatusCode::UNAUTHORIZED => ProviderError::Unknown { server: self.server(), message },
            StatusCode::FORBIDDEN => ProviderError::Forbidden { verb, set, namespace, message },
            StatusCode::NOT_FOUND => ProviderError::NoSet { set, namespace },
            StatusCode::CONFLICT => ProviderError::Conflict { set, namespace },
            status => ProviderError::Failed { status: status.as_u16(), message },
        }
    }

    fn server(&self) -> String {
        self.scale.origin().ascii_serialization()
    }
}
