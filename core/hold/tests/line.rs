//! What a line of held requests promises.

use std::{collections::VecDeque, time::Duration};

use hold::{Arrival, Full, Limits, Line, Room, Ticket};
use ids::Moment;
use proptest::prelude::*;

const BUDGET: Duration = Duration::from_secs(60);

fn limits(max_waiting: usize, release_at_once: usize) -> Limits {
    Limits { max_waiting, release_at_once, budget: BUDGET }
}

fn at(ms: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(ms))
}

fn wait(line: &mut Line, now: Moment) -> Ticket {
    match line.arrive(now, Room::Free) {
        Arrival::Wait { ticket, .. } => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn t15_a_closed_line_takes_as_many_as_it_may_and_refuses_the_next_at_once() {
    let mut line = Line::new(limits(5, 2));
    let tickets: Vec<_> = (0..5).map(|_| wait(&mut line, at(0))).collect();
    assert_eq!(line.arrive(at(0), Room::Free), Arrival::Refuse(Full::Sprite));
    // Who leaves frees a slot.
    assert_eq!(line.cancel(tickets[2]), []);
    let late = wait(&mut line, at(1));
    assert_eq!(line.arrive(at(1), Room::Free), Arrival::Refuse(Full::Sprite));
    // First in, first out.
    let mut gone = line.open();
    let mut next = 0;
    while next < gone.len() {
        let more = line.answered(gone[next]);
        gone.extend(more);
        next += 1;
    }
    assert_eq!(gone, [tickets[0], tickets[1], tickets[3], tickets[4], late]);
    assert!(line.is_empty());
    assert_eq!(line.arrive(at(2), Room::Full), Arrival::Pass, "no bookkeeping once the line has drained");
}

#[test]
fn a_full_gateway_holds_no_more_but_lets_awake_sprites_be_served() {
    let mut line = Line::new(limits(5, 2));
    assert_eq!(line.arrive(at(0), Room::Full), Arrival::Refuse(Full::Gateway));
    assert_eq!(line.open(), []);
    assert_eq!(line.arrive(at(0), Room::Full), Arrival::Pass);
}

#[test]
fn t16_five_thousand_held_requests_leave_at_the_pace_of_the_sprite() {
    let mut line = Line::new(limits(10_000, 64));
    for _ in 0..5_000 {
        let _ = wait(&mut line, at(0));
    }
    let mut on_the_way: VecDeque<_> = line.open().into();
    let mut answered = 0;
    while let Some(ticket) = on_the_way.pop_front() {
        assert!(line.released() <= 64, "{} at once", line.released());
        assert!(line.waiting() == 0 || line.released() == 64, "the sprite is never kept waiting");
        on_the_way.extend(line.answered(ticket));
        answered += 1;
    }
    assert_eq!((answered, line.is_empty()), (5_000, true));
}

#[test]
fn t12_when_a_wake_fails_everyone_who_waits_is_told_once() {
    let mut line = Line::new(limits(5, 2));
    let tickets: Vec<_> = (0..3).map(|_| wait(&mut line, at(0))).collect();
    assert_eq!(line.fail(), tickets);
    assert_eq!(line.fail(), []);
    assert!(line.is_empty());
}

#[test]
fn a_request_waits_no_longer_than_its_budget() {
    let mut line = Line::new(limits(5, 2));
    let first = wait(&mut line, at(0));
    let second = wait(&mut line, at(10));
    assert_eq!(line.next_deadline(), Some(at(0) + BUDGET));
    assert_eq!(line.expire(at(59_999)), []);
    assert_eq!(line.expire(at(60_000)), [first]);
    assert_eq!(line.next_deadline(), Some(at(10) + BUDGET));
    assert_eq!(line.expire(at(70_000)), [second]);
    assert_eq!(line.next_deadline(), None);
}

#[test]
fn a_ticket_that_is_gone_changes_nothing() {
    let mut line = Line::new(limits(5, 1));
    let [first, second, third] = [(); 3].map(|()| wait(&mut line, at(0)));
    assert_eq!(line.answered(second), [], "it is not on its way");
    assert_eq!(line.open(), [first]);
    assert_eq!(line.cancel(first), [second]);
    assert_eq!(line.cancel(first), []);
    assert_eq!(line.answered(first), [], "or two would be on their way");
    assert_eq!(line.answered(second), [third]);
}

/// One thing that happens to a line.
#[derive(Clone, Copy, Debug)]
enum Op {
    Arrive,
    Open,
    Close,
    Answered(usize),
    Cancel(usize),
    Fail,
    Pass(u32),
}

/// The line as simple as can be.
#[derive(Default)]
struct Model {
    open: bool,
    waiting: VecDeque<(Ticket, Moment)>,
    released: Vec<Ticket>,
}

struct World {
    limits: Limits,
    line: Line,
    model: Model,
    now: Moment,
    held: u64,
    ended: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self { limits, line: Line::new(limits), model: Model::default(), now: at(0), held: 0, ended: 0 }
    }

    fn going(&mut self) -> Vec<Ticket> {
        let mut going = Vec::new();
        while self.model.open && self.model.released.len() < self.limits.release_at_once {
            let Some((ticket, _)) = self.model.waiting.pop_front() else { break };
            self.model.released.push(ticket);
            going.push(ticket);
        }
        going
    }

    fn end(&mut self, ticket: Ticket) {
        self.model.waiting.retain(|(waiting, _)| *waiting != ticket);
        self.model.released.retain(|released| *released != ticket);
        self.ended += 1;
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Arrive => match self.line.arrive(self.now, Room::Free) {
                Arrival::Pass => assert!(self.model.open && self.model.waiting.is_empty()),
                Arrival::Wait { ticket, deadline } => {
                    assert!(!self.model.open || !self.model.waiting.is_empty());
                    self.model.waiting.push_back((ticket, deadline));
                    self.held += 1;
                }
                Arrival::Refuse(full) => {
                    assert_eq!((full, self.model.waiting.len()), (Full::Sprite, self.limits.max_waiting));
                }
            },
            Op::Open => {
                self.model.open = true;
                let went = self.line.open();
                assert_eq!(went, self.going());
            }
            Op::Close => {
                self.model.open = false;
                self.line.close();
            }
            Op::Answered(which) => {
                if let Some(&ticket) = self.model.released.get(which % self.model.released.len().max(1)) {
                    let went = self.line.answered(ticket);
                    self.end(ticket);
                    assert_eq!(went, self.going());
                }
            }
            Op::Cancel(which) => {
                let all =
                    self.model.waiting.iter().map(|(ticket, _)| *ticket).chain(self.model.released.clone());
                let all: Vec<_> = all.collect();
                if let Some(&ticket) = all.get(which % all.len().max(1)) {
                    let went = self.line.cancel(ticket);
                    self.end(ticket);
                    assert_eq!(went, self.going());
                }
            }
            Op::Fail => {
                let failed = self.line.fail();
                assert_eq!(failed.len(), self.model.waiting.len());
                failed.into_iter().for_each(|ticket| self.end(ticket));
            }
            Op::Pass(ms) => {
                self.now = self.now + Duration::from_millis(ms.into());
                for ticket in self.line.expire(self.now) {
                    assert_eq!(self.model.waiting.front().map(|(first, _)| *first), Some(ticket));
                    self.end(ticket);
                }
                assert!(self.model.waiting.front().is_none_or(|(_, deadline)| *deadline > self.now));
            }
        }
        assert_eq!(self.line.waiting(), self.model.waiting.len());
        assert_eq!(self.line.released(), self.model.released.len());
        assert!(self.line.waiting() <= self.limits.max_waiting);
        assert!(self.line.released() <= self.limits.release_at_once);
        // No wake-up is lost: whoever may go has gone.
        let may_go = self.line.is_open() && self.line.released() < self.limits.release_at_once;
        assert!(!may_go || self.line.waiting() == 0, "somebody was forgotten");
    }

    fn finish(mut self) {
        self.apply(Op::Open);
        while !self.model.released.is_empty() {
            self.apply(Op::Answered(0));
        }
        assert!(self.line.is_empty());
        assert_eq!(self.held, self.ended, "each held request ends once");
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => Just(Op::Arrive),
        2 => Just(Op::Open),
        1 => Just(Op::Close),
        6 => any::<usize>().prop_map(Op::Answered),
        3 => any::<usize>().prop_map(Op::Cancel),
        1 => Just(Op::Fail),
        2 => (0..100_000_u32).prop_map(Op::Pass),
    ]
}

proptest! {
    #[test]
    fn a_line_does_what_the_simplest_line_does(
        ops in prop::collection::vec(op(), 0..200), max_waiting in 0..8_usize, release_at_once in 1..5_usize,
    ) {
        let mut world = World::new(limits(max_waiting, release_at_once));
        ops.into_iter().for_each(|op| world.apply(op));
        world.finish();
    }
}

#[test]
fn t15_no_wake_up_is_lost_in_a_million_steps() {
    // splitmix64
    let mut seed = 0x5eed_u64;
    let mut random = move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut world = World::new(limits(32, 4));
    for _ in 0..1_000_000 {
        let which = usize::try_from(random() >> 33).expect("31 bits fit");
        world.apply(match random() % 32 {
            0..12 => Op::Arrive,
            12..15 => Op::Open,
            15 => Op::Close,
            16..24 => Op::Answered(which),
            24..29 => Op::Cancel(which),
            29 => Op::Fail,
            _ => Op::Pass(u32::try_from(random() % 20_000).expect("it is small")),
        });
    }
    world.finish();
}
