//! The supervisor of the loop: starts its four actors, and starts them again when they die.
//!
//! ```text
//! LoopHandle --Shutdown--> loop supervisor --spawn_linked--> allocator, manager, predictor, monitor
//!                              ^--failed, terminated--'
//! ```
//!
//! The first restart is immediate; an actor that keeps dying is started again after a pause that doubles
//! up to [`PAUSE_MAX`]. Successors take up their state from files and the board. If the supervisor itself
//! dies, the loop stops with it and queries go on with the last placement.

use std::sync::Arc;
use std::time::Duration;

use ractor::{
    Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent,
};

use crate::allocator::{Allocator, AllocatorArgs};
use crate::board::{Board, Role};
use crate::manager::{Manager, ManagerArgs};
use crate::monitor::{Monitor, MonitorArgs};
use crate::predictor::{Predictor, PredictorArgs};

/// Pause before the second restart in a row; it doubles with each further one.
pub const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Longest pause before a restart.
pub const PAUSE_MAX: Duration = Duration::from_secs(10);

/// An actor that lived this long starts from the shortest pause again.
pub const CALM_AFTER: Duration = Duration::from_secs(60);

/// How long an actor may take to stop before it is left behind.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// What the supervisor can be told.
#[derive(Debug)]
pub enum LoopSupervisorMessage {
    /// Timer: an actor that died is to be started again.
    RestartDue(Role),
    /// Timer: the n-th start of an actor has lasted.
    CalmDue(Role, u64),
    /// Command: stop everything, monitor last, and save what is to be saved.
    Shutdown(RpcReplyPort<()>),
}

/// What the actors of the loop are born with.
#[derive(Clone, Debug)]
pub struct LoopSupervisorArgs {
    /// Where everybody publishes.
    pub board: Arc<Board>,
    /// For the monitor.
    pub monitor: MonitorArgs,
    /// For the predictor.
    pub predictor: PredictorArgs,
    /// For the manager.
    pub manager: ManagerArgs,
    /// For the allocator.
    pub allocator: AllocatorArgs,
}

/// The actor. All that changes lives in [`LoopSupervisorState`].
#[derive(Debug)]
pub struct LoopSupervisor;

/// Memory of the supervisor.
#[derive(Debug)]
pub struct LoopSupervisorState {
    args: LoopSupervisorArgs,
    /// Deaths in a row, by place in [`Role::ALL`].
    deaths: [u32; 4],
    stopping: bool,
}

impl Actor for LoopSupervisor {
    type Msg = LoopSupervisorMessage;
    type State = LoopSupervisorState;
    type Arguments = LoopSupervisorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: LoopSupervisorArgs,
    ) -> Result<LoopSupervisorState, ActorProcessingErr> {
        let state = LoopSupervisorState { args, deaths: [0; 4], stopping: false };
        for role in Role::ALL {
            state.start(role, myself.get_cell()).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: LoopSupervisorMessage,
        state: &mut LoopSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LoopSupervisorMessage::RestartDue(role) => state.on_restart_due(role, &myself).await,
            LoopSupervisorMessage::CalmDue(role, start) => state.on_calm_due(role, start),
            LoopSupervisorMessage::Shutdown(reply) => state.on_shutdown(reply, &myself).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut LoopSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, error) => {
                state.on_death(&who, &error.to_string(), &myself);
            }
            SupervisionEvent::ActorTerminated(who, _, why) => {
                state.on_death(&who, &why.unwrap_or_default(), &myself);
            }
            _ => {}
        }
        Ok(())
    }
}

impl LoopSupervisorState {
    fn on_death(&mut self, who: &ActorCell, why: &str, myself: &ActorRef<LoopSupervisorMessage>) {
        let board = &self.args.board;
        let seated =
            |role: &Role| board.cell(*role).is_some_and(|cell| cell.get_id() == who.get_id());
        let Some(role) = Role::ALL.into_iter().find(seated) else { return };
        if self.stopping {
            return;
        }
        tracing::warn!(%role, why, "an actor of the loop died");
        self.restart_later(role, myself);
    }

    async fn on_restart_due(&mut self, role: Role, myself: &ActorRef<LoopSupervisorMessage>) {
        if self.stopping {
            return;
        }
        match self.start(role, myself.get_cell()).await {
            Ok(()) => {
                self.args.board.restarted(role);
                let start = self.args.board.restarts(role);
                tracing::info!(%role, start, "an actor of the loop was started again");
                let calm = move || LoopSupervisorMessage::CalmDue(role, start);
                drop(myself.send_after(CALM_AFTER, calm));
            }
            Err(error) => {
                tracing::warn!(%role, %error, "an actor of the loop could not be started");
                self.restart_later(role, myself);
            }
        }
    }

    fn on_calm_due(&mut self, role: Role, start: u64) {
        if self.args.board.restarts(role) == start {
            self.deaths[place(role)] = 0;
        }
    }

    async fn on_shutdown(
        &mut self,
        reply: RpcReplyPort<()>,
        myself: &ActorRef<LoopSupervisorMessage>,
    ) {
        self.stopping = true;
        for role in Role::ALL {
            let Some(cell) = self.args.board.cell(role) else { continue };
            // Draining, not stopping: what is in the mailbox belongs to what is saved. A dead one
            // answers with an error at once, which is as good as stopped.
            let stopped = cell.drain_and_wait(Some(STOP_TIME_MAX)).await;
            if let Err(ractor::RactorErr::Timeout) = stopped {
                tracing::warn!(%role, "did not stop within {} ms", STOP_TIME_MAX.as_millis());
            }
        }
        drop(reply.send(()));
        myself.stop(None);
    }

    fn restart_later(&mut self, role: Role, myself: &ActorRef<LoopSupervisorMessage>) {
        let deaths = &mut self.deaths[place(role)];
        let pause = pause(*deaths);
        *deaths = deaths.saturating_add(1);
        drop(myself.send_after(pause, move || LoopSupervisorMessage::RestartDue(role)));
    }

    async fn start(&self, role: Role, supervisor: ActorCell) -> Result<(), SpawnErr> {
        let args = &self.args;
        match role {
            Role::Monitor => {
                let born = args.monitor.clone();
                let (actor, _) = Actor::spawn_linked(None, Monitor, born, supervisor).await?;
                args.board.calls.connect(actor.clone());
                args.board.monitor.take(actor);
            }
            Role::Predictor => {
                let born = args.predictor.clone();
                let (actor, _) = Actor::spawn_linked(None, Predictor, born, supervisor).await?;
                args.board.predictor.take(actor);
            }
            Role::Manager => {
                let born = args.manager.clone();
                let (actor, _) = Actor::spawn_linked(None, Manager, born, supervisor).await?;
                args.board.manager.take(actor);
            }
            Role::Allocator => {
                let born = args.allocator.clone();
                let (actor, _) = Actor::spawn_linked(None, Allocator, born, supervisor).await?;
                args.board.allocator.take(actor);
            }
        }
        Ok(())
    }
}

fn place(role: Role) -> usize {
    Role::ALL.into_iter().position(|other| other == role).unwrap_or_default()
}

/// Pause before the restart that follows `deaths` others in a row.
fn pause(deaths: u32) -> Duration {
    match deaths {
        0 => Duration::ZERO,
        deaths => PAUSE_MIN.saturating_mul(1 << (deaths - 1).min(16)).min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_the_pause_is_bounded() {
        let pauses_ms: Vec<u128> = [0, 1, 2, 3, 8, 40].map(|d| pause(d).as_millis()).into();
        assert_eq!(pauses_ms, [0, 100, 200, 400, 10_000, 10_000]);
    }
}
