//! What people ask of a running loop: to leave tables alone, to carry a step out, to take one back.

use std::sync::Arc;

use foreshard_policy::control::{ControlError, Controls};
use tokio::sync::oneshot::{Receiver, channel};

use super::LoopHandle;
use crate::allocator::AllocatorMessage;
use crate::board::Role;
use crate::controls::RequestError;
use crate::manager::ManagerMessage;
use crate::steps::role_of;

impl LoopHandle {
    /// What people let the loop do to each table.
    #[must_use]
    pub fn controls(&self) -> Arc<Controls> {
        self.board.controls.all()
    }

    /// Changes what the loop may do to a table, from the next plan on; `change` answers whether anything
    /// is new. It is on disk when this returns, if the loop's state is.
    ///
    /// # Errors
    /// [`RequestError::Unsaved`] if it cannot be kept.
    pub async fn change_controls(
        &self,
        change: impl FnOnce(&mut Controls) -> bool + Send + 'static,
    ) -> Result<bool, RequestError> {
        let board = self.board.clone();
        let done = tokio::task::spawn_blocking(move || board.controls.change(change)).await;
        done.unwrap_or_else(|error| Err(RequestError::Unsaved { reason: error.to_string() }))
    }

    /// Has a suggested step carried out. Answers the number of the decision that does it; see
    /// [`settled`](Self::settled) for its end.
    ///
    /// # Errors
    /// [`RequestError`] if it is not suggested any more, or its table is frozen.
    pub async fn approve(&self, id: u64) -> Result<u64, RequestError> {
        let kind = self.board.ledger().get(id)?.kind.clone();
        let role = role_of(&kind);
        let (reply, answer) = channel();
        let sent = match role {
            Role::Allocator => {
                self.board.allocator.cast(AllocatorMessage::Approve(id, reply.into()))
            }
            _ => self.board.manager.cast(ManagerMessage::Approve(id, reply.into())),
        };
        answered(sent, answer, role).await
    }

    /// Takes a step that was carried out back, by its inverse; the plan does not do the same again for
    /// `reshape.undone-ticks`. Answers the number of the decision that does it.
    ///
    /// # Errors
    /// [`RequestError`] if nothing was done, or it cannot be taken back any more.
    pub async fn undo(&self, id: u64) -> Result<u64, RequestError> {
        let (reply, answer) = channel();
        let sent = self.board.manager.cast(ManagerMessage::Undo(id, reply.into()));
        answered(sent, answer, Role::Manager).await
    }
}

/// What an actor answers; a message that died with it has no answer.
async fn answered(
    sent: bool,
    answer: Receiver<Result<u64, ControlError>>,
    role: Role,
) -> Result<u64, RequestError> {
    if !sent {
        return Err(RequestError::Down { role });
    }
    Ok(answer.await.map_err(|_gone| RequestError::Down { role })??)
}
