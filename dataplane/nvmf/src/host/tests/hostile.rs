//! Whatever a controller sends, a host neither panics nor loses track of a command.

use proptest::prelude::*;

use super::*;

/// One thing a hostile controller does.
#[derive(Debug, Clone)]
enum Act {
    Bytes(Vec<u8>),
    Response {
        index: usize,
        status: u16,
        result: u64,
    },
    Data {
        index: usize,
        datao: u32,
        datal: u32,
        flags: u8,
    },
    R2t {
        index: usize,
        r2to: u32,
        r2tl: u32,
    },
    /// A well-formed PDU with one byte changed.
    Damaged {
        index: usize,
        at: usize,
        xor: u8,
    },
    Read(u32),
    Write(u32),
    Send,
}

fn act() -> impl Strategy<Value = Act> {
    let len = (1u32..1024).prop_map(|dwords| dwords * 4);
    let offset = prop_oneof![Just(0u32), 0u32..8192, any::<u32>()];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Act::Bytes),
        4 => (0usize..8, prop_oneof![Just(0u16), any::<u16>()], any::<u64>())
            .prop_map(|(index, status, result)| Act::Response { index, status, result }),
        4 => (0usize..8, offset.clone(), 1u32..4096, any::<u8>())
            .prop_map(|(index, datao, datal, flags)| Act::Data { index, datao, datal, flags }),
        4 => (0usize..8, offset, any::<u16>())
            .prop_map(|(index, r2to, r2tl)| Act::R2t { index, r2to, r2tl: r2tl.into() }),
        1 => (0usize..8, 0usize..28, any::<u8>())
            .prop_map(|(index, at, xor)| Act::Damaged { index, at, xor }),
        4 => len.clone().prop_map(Act::Read),
        4 => len.prop_map(|len| Act::Write(len * 3)),
        6 => Just(Act::Send),
    ]
}

fn digests() -> impl Strategy<Value = Digests> {
    (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
}

/// The identifier of the `index`th outstanding command, or one that nobody uses.
fn cid_of(owner: &Owner, index: usize) -> CommandId {
    owner
        .queue
        .slots
        .iter_used()
        .nth(index)
        .map_or(CommandId(0xEEEE), |(_, slot)| slot.sqe.cid())
}

fn run(owner: &mut Owner, digests: Digests, act: &Act, token: &mut u64) {
    let accepted = |owner: &mut Owner, token: &mut u64| {
        *token += 1;
        owner.queue.is_ready() && owner.queue.outstanding() < owner.queue.depth_max()
    };
    match act {
        Act::Bytes(bytes) => owner.receive(bytes),
        Act::Response {
            index,
            status,
            result,
        } => {
            let cid = cid_of(owner, *index);
            owner.receive(&response(cid, Status::from_wire(*status), *result, digests));
        }
        Act::Data {
            index,
            datao,
            datal,
            flags,
        } => {
            let cccid = cid_of(owner, *index);
            let (last, success) = (flags & 1 != 0, flags & 3 == 3);
            let data = C2HData {
                cccid,
                datao: *datao,
                datal: *datal,
                last,
                success,
            };
            owner.receive(&c2h_data(data, &vec![9; *datal as usize], digests));
        }
        Act::R2t { index, r2to, r2tl } => {
            let cid = cid_of(owner, *index);
            owner.receive(&r2t(cid, 3, *r2to, *r2tl, digests));
        }
        Act::Damaged { index, at, xor } => {
            let mut wire = response(cid_of(owner, *index), Status::SUCCESS, 0, digests);
            let at = at % wire.len();
            wire[at] ^= xor;
            owner.receive(&wire);
        }
        Act::Read(len) => {
            if accepted(owner, token) {
                owner.read(*len, *token);
            } else {
                *token -= 1;
            }
        }
        Act::Write(len) => {
            if accepted(owner, token) {
                owner.write(&vec![5; *len as usize], *token);
            } else {
                *token -= 1;
            }
        }
        Act::Send => {
            owner.sent();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn hostile_controller_completes_each_command_exactly_once(
        digests in digests(),
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut owner = Owner::connected(HostQueueConfig { digests, ..queue_config() });
        let mut submitted = 0;
        let mut tokens = Vec::new();
        for act in &acts {
            run(&mut owner, digests, act, &mut submitted);
            tokens.extend(owner.completions().iter().map(|completion| completion.token));
        }
        owner.queue.closed();
        tokens.extend(owner.completions().iter().map(|completion| completion.token));
        tokens.sort_unstable();
        prop_assert_eq!(tokens, (1..=submitted).collect::<Vec<_>>());
        prop_assert_eq!(owner.queue.outstanding(), 0);
    }

    #[test]
    fn any_bytes_at_any_stage_only_end_the_connection(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        stage in 0..3,
        chunk in 1usize..50,
    ) {
        let mut owner = match stage {
            0 => Owner::new(queue_config()),
            1 => {
                let mut owner = Owner::new(queue_config());
                owner.sent();
                owner
            }
            _ => Owner::connected(queue_config()),
        };
        for part in bytes.chunks(chunk) {
            owner.receive(part);
        }
        owner.queue.closed();
        prop_assert!(owner.closed().is_some());
    }
}
