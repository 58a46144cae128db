//! Where nodes come from: parts of this process, more processes, or pods.

mod child;
mod error;
mod kubernetes;
mod processes;

use std::sync::Arc;

use foreshard_actors::ports::NodeProvider;
use foreshard_policy::config::Provider;

pub use self::error::ProviderError;
use self::kubernetes::Kubernetes;
use self::processes::Processes;
use crate::cluster::Members;
use crate::config::Config;

/// The provider that `loop.allocate.provider` names.
///
/// # Errors
/// [`ProviderError::NoAccess`] if Kubernetes is to be asked, and it is not known how.
pub(crate) fn provider(
    config: &Config,
    members: &Arc<Members>,
) -> Result<Arc<dyn NodeProvider>, ProviderError> {
    let members = Arc::clone(members);
    let provider: Arc<dyn NodeProvider> = match config.loop_config().allocate().provider() {
        Provider::InProcess => members,
        Provider::Process => Arc::new(Processes::new(config, members)),
        Provider::Kubernetes => Arc::new(Kubernetes::new(config, members)?),
    };
    Ok(provider)
}
