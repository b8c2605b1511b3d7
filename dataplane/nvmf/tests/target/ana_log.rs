//! The ANA log as hosts read it: in one piece or in many, while it changes.

use std::collections::BTreeMap;

use bowline_nvme::feature::{SetFeatures, id as fid};
use bowline_nvme::identify::{IdentifyController, cns};
use bowline_nvme::log::{AnaState, GetLogPage, SupportedLogs, id as lid};
use bowline_nvme::opcode::admin;
use bowline_nvme::pdu::Digests;
use bowline_nvme::{Nanos, Sgl, Sqe, Status};
use bowline_nvmf::target::{
    AnaConfig, ConfigError, ConnId, NamespaceConfig, NamespaceHandle, SubsystemConfig, TargetConfig,
};
use proptest::prelude::*;

use crate::glue::{CC_ENABLE, Glue, SUBNQN, namespace};

const ANA_CHANGED: u64 = 0x000C_0302;
const NAMESPACE_CHANGED: u64 = 0x0004_0002;
const GROUPS: u32 = 5;
const NAMESPACES: u32 = 16;
/// What a host makes room for: header, descriptors of all groups, all namespaces.
const LOG_BYTES: u32 = 16 + GROUPS * 32 + NAMESPACES * 4;

fn glue() -> Glue {
    let ana = AnaConfig {
        groups_max: GROUPS,
        ..AnaConfig::default()
    };
    Glue::with_ana(TargetConfig::default(), ana)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// A group as its descriptor has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    state: u8,
    changes: u64,
    nsids: Vec<u32>,
}

/// Reads a log as Linux does, from byte offsets alone, and gives up where Linux does. Returns the
/// change count and the groups.
fn parse(log: &[u8]) -> (u64, BTreeMap<u32, Group>) {
    let (count, groups) = (long(log, 0), u16::from_le_bytes([log[8], log[9]]));
    assert_eq!(log[10..16], [0; 6]);
    let (mut at, mut found, mut last) = (16, BTreeMap::new(), 0);
    for _ in 0..groups {
        assert!(at + 32 <= log.len(), "a descriptor beyond the log");
        let (id, nsids) = (word(log, at), word(log, at + 4) as usize);
        let (changes, state) = (long(log, at + 8), log[at + 16]);
        assert!(id > last && id <= GROUPS, "groups ascend up to ANAGRPMAX");
        assert!(matches!(state, 1..=4 | 0xF));
        assert!(changes > 0, "0 would mean: not counted");
        assert_eq!(log[at + 17..at + 32], [0; 15]);
        at += 32;
        assert!(at + nsids * 4 <= log.len(), "namespaces beyond the log");
        let nsids: Vec<u32> = (0..nsids).map(|index| word(log, at + index * 4)).collect();
        assert!(
            nsids.is_sorted_by(|a, b| a < b),
            "Linux merges sorted lists"
        );
        at += nsids.len() * 4;
        last = id;
        let group = Group {
            state,
            changes,
            nsids,
        };
        found.insert(id, group);
    }
    assert!(log[at..].iter().all(|byte| *byte == 0), "padding");
    (count, found)
}

fn read(glue: &mut Glue, admin: ConnId, offset: u32, bytes: u32, rae: bool) -> Vec<u8> {
    let get = GetLogPage {
        rae,
        ..GetLogPage::range(lid::ANA, u64::from(offset), bytes)
    };
    glue.log(admin, get).expect("within the log")
}

fn whole(glue: &mut Glue, admin: ConnId) -> Vec<u8> {
    read(glue, admin, 0, LOG_BYTES, true)
}

fn set(glue: &mut Glue, group: u32, state: AnaState) {
    let now = glue.now;
    let set = glue.target.set_ana_state(now, SUBNQN, group, state);
    set.expect("there are groups");
    glue.pump();
}

/// What `nvme_mpath_init_identify`, `nvme_parse_ana_log` and the scan of namespaces ask for.
#[test]
fn linux_brings_up_multipath_with_ana() {
    let mut glue = glue();
    glue.add_namespace(2);
    let now = glue.now;
    let moved = glue.target.set_ana_group(now, SUBNQN, 2, 4);
    moved.expect("both are there");
    set(&mut glue, 4, AnaState::NonOptimized);
    let (admin, cntlid) = glue.enabled(Digests::NONE, 5000);
    let page = glue.identify(admin, cns::CONTROLLER, 0).expect("mandatory");
    assert_eq!(u16::from_le_bytes([page[78], page[79]]), cntlid);
    assert_eq!(page[76] & 0b1010, 0b1010, "CMIC: several controllers, ANA");
    assert_eq!(word(&page, 92) & 1 << 11, 1 << 11, "OAES: ANA change");
    let (nn, mnan) = (word(&page, 516), word(&page, 540));
    assert!(mnan > 0 && mnan <= nn, "MNAN {mnan} of NN {nn}");
    let (anatt, anacap) = (page[342], page[343]);
    let (anagrpmax, nanagrpid) = (word(&page, 344), word(&page, 348));
    assert_eq!((anatt, anacap), (10, 0x9F), "every state, groups not fixed");
    assert!(nanagrpid > 0 && nanagrpid <= anagrpmax);
    let log_bytes = 16 + nanagrpid * 32 + mnan * 4;
    assert!(log_bytes <= 4096 << page[77], "the log fits into MDTS");
    let log = read(&mut glue, admin, 0, log_bytes, false);
    let (_, groups) = parse(&log);
    // Each namespace of the scan finds the state of its group in the log.
    let list = glue.identify(admin, cns::ACTIVE_NAMESPACE_LIST, 0);
    let list = list.expect("mandatory");
    let mut seen = Vec::new();
    for nsid in (0..1024)
        .map(|at| word(&list, at * 4))
        .take_while(|it| *it > 0)
    {
        let page = glue.identify(admin, cns::NAMESPACE, nsid).expect("active");
        assert_eq!(page[30] & 1, 1, "NMIC: shared");
        let group = word(&page, 92);
        assert!(groups[&group].nsids.contains(&nsid));
        seen.push((nsid, group, groups[&group].state));
    }
    assert_eq!(seen, [(1, 1, 1), (2, 4, 2)]);
    // Then events: what OAES offers is what is enabled, and one request is left.
    let aec = word(&page, 92);
    let enable = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, aec).encode();
    assert_eq!(glue.command(admin, enable).status, Status::SUCCESS);
    let request = Sqe::new(admin::ASYNC_EVENT_REQUEST);
    glue.send(admin, request.with_sgl1(Sgl::transport(0)));
    set(&mut glue, 4, AnaState::Optimized);
    let event = glue.reply(admin).cqe().result;
    assert_eq!(event, 0x000C_0302);
    let log = read(&mut glue, admin, 0, log_bytes, false);
    assert_eq!(parse(&log).1[&4].state, 1);
}

#[test]
fn groups_only_log_names_no_namespaces() {
    let mut glue = glue();
    glue.add_namespace(2);
    let (admin, _) = glue.admin();
    let get = GetLogPage {
        lsp: GetLogPage::LSP_ANA_GROUPS_ONLY,
        ..GetLogPage::range(lid::ANA, 0, LOG_BYTES)
    };
    let log = glue.log(admin, get).expect("supported");
    let (count, groups) = parse(&log);
    let (whole_count, whole_groups) = parse(&whole(&mut glue, admin));
    assert_eq!(count, whole_count);
    assert!(groups[&1].nsids.is_empty() && whole_groups[&1].nsids == [1, 2]);
    assert_eq!(groups[&1].changes, whole_groups[&1].changes);
}

#[test]
fn any_piece_of_the_log_is_that_piece_and_zero_beyond() {
    let mut glue = glue();
    for id in 2..=9 {
        glue.add_namespace(id);
        let now = glue.now;
        let group = u32::from(id) % GROUPS + 1;
        let moved = glue.target.set_ana_group(now, SUBNQN, u32::from(id), group);
        moved.expect("both are there");
    }
    let (admin, _) = glue.admin();
    let log = whole(&mut glue, admin);
    for offset in (0..=LOG_BYTES).step_by(4) {
        for bytes in [4, 8, 24, 60, LOG_BYTES, 4096] {
            let piece = read(&mut glue, admin, offset, bytes, true);
            let rest = log
                .iter()
                .skip(offset as usize)
                .chain(std::iter::repeat(&0));
            assert!(
                piece.iter().eq(rest.take(bytes as usize)),
                "{offset} {bytes}"
            );
        }
    }
    for (offset, bytes) in [(u64::from(LOG_BYTES) + 4, 4), (2, 4), (u64::MAX - 3, 4)] {
        let get = GetLogPage::range(lid::ANA, offset, bytes);
        let refused = glue.log(admin, get);
        assert!(refused.is_err_and(|it| it.same_code(Status::INVALID_FIELD) && it.is_dnr()));
    }
    let page = glue.log(admin, GetLogPage::range(lid::SUPPORTED_LOG_PAGES, 0, 1024));
    let page = page.expect("mandatory");
    let supported = SupportedLogs::decode(page.first_chunk().expect("1024"));
    assert!(supported.contains(lid::ANA));
}

/// The count of the log starts again with the controller; that of a group does not.
#[test]
fn change_count_of_the_log_begins_at_0_after_a_controller_reset() {
    let mut glue = glue();
    let (admin, _) = glue.admin();
    assert_eq!(parse(&whole(&mut glue, admin)).0, 0);
    set(&mut glue, 1, AnaState::NonOptimized);
    set(&mut glue, 1, AnaState::Optimized);
    let (count, before) = parse(&whole(&mut glue, admin));
    assert_eq!(count, 2);
    glue.set_cc(admin, 0);
    glue.set_cc(admin, CC_ENABLE);
    let (count, after) = parse(&whole(&mut glue, admin));
    assert_eq!((count, after), (0, before));
    let (other, _) = glue.admin();
    set(&mut glue, 1, AnaState::Inaccessible);
    for admin in [admin, other] {
        assert_eq!(parse(&whole(&mut glue, admin)).0, 1);
    }
}

/// Linux resets a controller that stays in the state Change for twice as long as ANATT says.
#[test]
fn change_ends_as_inaccessible_when_its_time_is_over() {
    let mut glue = glue();
    glue.add_namespace(2);
    let now = glue.now;
    let moved = glue.target.set_ana_group(now, SUBNQN, 2, 2);
    moved.expect("both are there");
    let (admin, _) = glue.admin();
    let states = |glue: &mut Glue| {
        let (_, groups) = parse(&whole(glue, admin));
        (groups[&1].state, groups[&2].state)
    };
    set(&mut glue, 1, AnaState::Change);
    glue.advance(Nanos::from_secs(4));
    set(&mut glue, 2, AnaState::Change);
    glue.advance(Nanos::from_millis(5999));
    assert_eq!(states(&mut glue), (0xF, 0xF));
    glue.advance(Nanos::from_millis(1));
    assert_eq!(states(&mut glue), (3, 0xF));
    // One that has ended in time, and begun again, has all its time again.
    set(&mut glue, 2, AnaState::Optimized);
    set(&mut glue, 2, AnaState::Change);
    glue.advance(Nanos::from_secs(9));
    assert_eq!(states(&mut glue), (3, 0xF));
    set(&mut glue, 2, AnaState::Optimized);
    glue.advance(Nanos::from_secs(60));
    assert_eq!(states(&mut glue), (3, 1));
}

#[test]
fn ana_that_hosts_would_trip_over_is_refused() {
    let check = |namespaces_max, ana: AnaConfig, expected| {
        let config = TargetConfig {
            mdts_bytes: 8192,
            ..TargetConfig::default()
        };
        let mut glue = Glue::bare(config);
        let subsystem = SubsystemConfig {
            namespaces_max,
            ana: Some(ana),
            ..SubsystemConfig::new(SUBNQN, "BL0001")
        };
        let now = glue.now;
        assert_eq!(
            glue.target.add_subsystem(now, subsystem),
            expected,
            "{ana:?}"
        );
    };
    let good = AnaConfig::default();
    let with = |groups_max| AnaConfig { groups_max, ..good };
    let refused = Err(ConfigError::Ana);
    check(16, good, Ok(()));
    check(16, with(0), refused);
    check(16, with(1025), refused);
    // 16 bytes, a group of 32, and namespaces of 4 bytes each are 8192.
    check(2036, with(1), Ok(()));
    check(2037, with(1), refused);
    let transition_seconds = 0;
    check(
        16,
        AnaConfig {
            transition_seconds,
            ..good
        },
        refused,
    );
    let initial = AnaState::Change;
    check(16, AnaConfig { initial, ..good }, refused);
}

#[derive(Clone, Debug)]
enum Action {
    State(u32, AnaState),
    Relocate(u32, u32),
    Add(u32, Option<u32>),
    Remove(u32),
    /// Read in pieces of so many dwords, with a change of this group's state after one of them.
    Read(u32, Option<(u32, u32, AnaState)>),
    Reset,
}

fn action() -> impl Strategy<Value = Action> {
    let group = || 1..=GROUPS;
    let nsid = || 1..=NAMESPACES;
    let state = || {
        prop::sample::select(vec![
            AnaState::Optimized,
            AnaState::NonOptimized,
            AnaState::Inaccessible,
            AnaState::PersistentLoss,
            AnaState::Change,
        ])
    };
    let change = prop::option::of((0u32..8, group(), state()));
    prop_oneof![
        4 => (group(), state()).prop_map(|(group, state)| Action::State(group, state)),
        3 => (nsid(), group()).prop_map(|(nsid, group)| Action::Relocate(nsid, group)),
        3 => (nsid(), prop::option::of(group())).prop_map(|(nsid, group)| Action::Add(nsid, group)),
        2 => nsid().prop_map(Action::Remove),
        3 => (1u32..40, change).prop_map(|(dwords, change)| Action::Read(dwords, change)),
        1 => Just(Action::Reset),
    ]
}

/// The simplest model of groups, and what one host knows.
struct Model {
    glue: Glue,
    admin: ConnId,
    states: BTreeMap<u32, AnaState>,
    members: BTreeMap<u32, u32>,
    handles: u32,
    /// Changes of the log since the last controller reset.
    changes: u64,
    /// The groups of the log read last.
    last: BTreeMap<u32, Group>,
    /// Every change count that a group ever had.
    group_changes: BTreeMap<u32, u64>,
    ana_masked: bool,
    namespace_masked: bool,
}

impl Model {
    fn new() -> Self {
        let mut glue = glue();
        let (admin, _) = glue.admin();
        let (changes, last) = parse(&whole(&mut glue, admin));
        let mut model = Self {
            glue,
            admin,
            states: BTreeMap::new(),
            members: BTreeMap::from([(1, 1)]),
            handles: 1,
            changes,
            last,
            group_changes: BTreeMap::new(),
            ana_masked: false,
            namespace_masked: false,
        };
        model.listen();
        model
    }

    fn listen(&mut self) {
        let aec = SetFeatures::new(fid::ASYNC_EVENT_CONFIG, 0x900).encode();
        assert_eq!(self.glue.command(self.admin, aec).status, Status::SUCCESS);
        self.request();
        self.request();
    }

    fn request(&mut self) {
        let request = Sqe::new(admin::ASYNC_EVENT_REQUEST);
        let request = request.with_sgl1(Sgl::transport(0));
        self.glue.send(self.admin, request);
    }

    fn expected(&self) -> BTreeMap<u32, (u8, Vec<u32>)> {
        let mut groups = BTreeMap::new();
        for (nsid, group) in &self.members {
            let state = self.states.get(group).copied();
            let state = state.unwrap_or(AnaState::Optimized).wire();
            let entry = groups.entry(*group).or_insert((state, Vec::new()));
            entry.1.push(*nsid);
        }
        groups
    }

    /// The log says what the model says, and its counts tell what has changed.
    fn check_log(&mut self, log: &[u8]) {
        let (count, groups) = parse(log);
        let content = |groups: &BTreeMap<u32, Group>| -> BTreeMap<u32, (u8, Vec<u32>)> {
            let content = |(id, it): (&u32, &Group)| (*id, (it.state, it.nsids.clone()));
            groups.iter().map(content).collect()
        };
        assert_eq!(content(&groups), self.expected());
        assert_eq!(count, self.changes, "the log counts what it shows");
        for (id, group) in &groups {
            let before = self.group_changes.insert(*id, group.changes).unwrap_or(0);
            let same = |last: &Group| (last.state, &last.nsids) == (group.state, &group.nsids);
            let changed = !self.last.get(id).is_some_and(same);
            assert!(!changed || group.changes > before, "group {id}");
            assert!(group.changes >= before);
        }
        self.last = groups;
    }

    /// The log has changed, or not, and the event that tells of it has come.
    fn check_events(&mut self, ana: bool, namespace: bool) {
        self.changes += u64::from(ana || namespace);
        self.glue.pump();
        let replies = self.glue.replies(self.admin).into_iter();
        let found: Vec<u64> = replies.map(|reply| reply.cqe().result).collect();
        let mut expected = Vec::new();
        if namespace && !std::mem::replace(&mut self.namespace_masked, true) {
            expected.push(NAMESPACE_CHANGED);
        }
        if ana && !std::mem::replace(&mut self.ana_masked, true) {
            expected.push(ANA_CHANGED);
        }
        assert_eq!(found, expected);
        found.iter().for_each(|_| self.request());
    }

    fn set_state(&mut self, group: u32, state: AnaState) {
        let now = self.glue.now;
        let set = self.glue.target.set_ana_state(now, SUBNQN, group, state);
        set.expect("within the limits");
        let old = self.states.insert(group, state);
        let changed = old.unwrap_or(AnaState::Optimized) != state;
        let shown = self.members.values().any(|it| *it == group);
        self.check_events(changed && shown, false);
    }

    fn relocate(&mut self, nsid: u32, group: u32) {
        let now = self.glue.now;
        let moved = self.glue.target.set_ana_group(now, SUBNQN, nsid, group);
        let old = self.members.get(&nsid).copied();
        assert_eq!(moved.is_ok(), old.is_some());
        if old.is_some() {
            self.members.insert(nsid, group);
        }
        self.check_events(old.is_some_and(|old| old != group), false);
    }

    fn add(&mut self, nsid: u32, group: Option<u32>) {
        self.handles += 1;
        let config = NamespaceConfig {
            handle: NamespaceHandle(self.handles),
            ana_group: group,
            ..namespace(u8::try_from(nsid).expect("small"))
        };
        let now = self.glue.now;
        let added = self.glue.target.add_namespace(now, SUBNQN, config);
        assert_eq!(added.is_ok(), !self.members.contains_key(&nsid));
        if added.is_ok() {
            self.members.insert(nsid, group.unwrap_or(1));
        }
        self.check_events(false, added.is_ok());
    }

    fn remove(&mut self, nsid: u32) {
        let now = self.glue.now;
        let removed = self.glue.target.remove_namespace(now, SUBNQN, nsid);
        assert_eq!(removed.is_ok(), self.members.remove(&nsid).is_some());
        self.check_events(false, removed.is_ok());
    }

    /// As a host reads a long log: in pieces, and again if the count differs in the end.
    fn read(&mut self, dwords: u32, mut change: Option<(u32, u32, AnaState)>) {
        loop {
            let (mut log, mut piece) = (Vec::new(), 0);
            let before = long(&read(&mut self.glue, self.admin, 0, 16, true), 0);
            while log.len() < LOG_BYTES as usize {
                let offset = u32::try_from(log.len()).expect("small");
                let bytes = (LOG_BYTES - offset).min(dwords * 4);
                log.extend(read(&mut self.glue, self.admin, offset, bytes, true));
                if let Some((_, group, state)) = change.take_if(|(at, ..)| *at == piece) {
                    self.set_state(group, state);
                }
                piece += 1;
            }
            let header = read(&mut self.glue, self.admin, 0, 16, false);
            self.ana_masked = false;
            if long(&header, 0) == before {
                return self.check_log(&log);
            }
        }
    }

    fn reset(&mut self) {
        self.glue.set_cc(self.admin, 0);
        self.glue.set_cc(self.admin, CC_ENABLE);
        let log = whole(&mut self.glue, self.admin);
        let (count, groups) = parse(&log);
        assert_eq!(count, 0, "the host counts from here");
        for (id, group) in &groups {
            self.group_changes.insert(*id, group.changes);
        }
        (self.changes, self.last) = (0, groups);
        (self.ana_masked, self.namespace_masked) = (false, false);
        self.listen();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_changes_show_in_the_log_its_counts_and_events(
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut model = Model::new();
        for action in actions {
            match action {
                Action::State(group, state) => model.set_state(group, state),
                Action::Relocate(nsid, group) => model.relocate(nsid, group),
                Action::Add(nsid, group) => model.add(nsid, group),
                Action::Remove(nsid) => model.remove(nsid),
                Action::Read(dwords, change) => model.read(dwords, change),
                Action::Reset => model.reset(),
            }
        }
        let log = whole(&mut model.glue, model.admin);
        let (_, groups) = parse(&log);
        let found: BTreeMap<u32, (u8, Vec<u32>)> = groups
            .into_iter()
            .map(|(id, group)| (id, (group.state, group.nsids)))
            .collect();
        prop_assert_eq!(found, model.expected());
        let page = model.glue.identify(model.admin, cns::CONTROLLER, 0).expect("mandatory");
        prop_assert_eq!(IdentifyController::decode(&page).anagrpmax, GROUPS);
    }
}
