//! A node in virtual time: permits in the order in which they are asked for, and background work behind
//! the calls of users.

use std::collections::VecDeque;

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    permits: u32,
    /// Calls that wait for a permit, by number.
    users: VecDeque<usize>,
    /// Background work that waits for one.
    behind: VecDeque<usize>,
    /// Background work that waits until no user task runs.
    idling: VecDeque<usize>,
    /// User tasks that run.
    active: usize,
    /// Queries that read from it.
    pub(super) in_flight: usize,
}

/// Who may compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// A query, by number.
    User(usize),
    /// Work ahead of queries, by number.
    Background(usize),
}

impl Node {
    pub(super) fn new(permits: u32) -> Self {
        let (users, behind, idling) = Default::default();
        Self { permits, users, behind, idling, active: 0, in_flight: 0 }
    }

    /// A user task begins: what is in the background waits for its end.
    pub(super) fn task_begins(&mut self) {
        self.active += 1;
    }

    /// A user task ends.
    pub(super) fn task_ends(&mut self) {
        self.active = self.active.saturating_sub(1);
        if self.active == 0 {
            self.behind.append(&mut self.idling);
        }
    }

    /// Asks for a permit for the next slice.
    pub(super) fn ask(&mut self, whom: Whom) {
        match whom {
            Whom::User(query) => self.users.push_back(query),
            Whom::Background(work) if self.active > 0 => self.idling.push_back(work),
            Whom::Background(work) => self.behind.push_back(work),
        }
    }

    /// Gives a permit back.
    pub(super) fn give_back(&mut self) {
        self.permits += 1;
    }

    /// Who gets a permit now, if there is one.
    pub(super) fn next(&mut self) -> Option<Whom> {
        let left = self.permits.checked_sub(1)?;
        let user = self.users.pop_front().map(Whom::User);
        let next = user.or_else(|| self.behind.pop_front().map(Whom::Background))?;
        self.permits = left;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_come_first_and_background_work_begins_no_slice_beside_a_user_task() {
        let mut node = Node::new(1);
        node.ask(Whom::Background(7));
        node.task_begins();
        node.ask(Whom::User(1));
        node.ask(Whom::User(2));
        assert_eq!(node.next(), Some(Whom::User(1)));
        assert_eq!(node.next(), None, "there is one permit");
        node.give_back();
        assert_eq!(node.next(), Some(Whom::User(2)));
        node.give_back();
        node.ask(Whom::Background(8));
        assert_eq!(node.next(), Some(Whom::Background(7)), "it asked while no task ran");
        node.give_back();
        assert_eq!(node.next(), None, "a task runs");
        node.task_ends();
        assert_eq!(node.next(), Some(Whom::Background(8)));
    }
}
