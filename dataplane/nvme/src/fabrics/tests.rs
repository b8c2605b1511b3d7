use super::*;
use crate::nqn::Nqn;
use crate::{ControllerId, QueueId};

#[test]
fn connect_command_has_the_known_bytes() {
    let connect = Connect {
        recfmt: 0,
        qid: QueueId(2),
        sqsize: 127,
        cattr: 4,
        kato_ms: 5000,
    };
    let sqe = connect.encode();
    assert_eq!((sqe.opcode(), sqe.fctype(), sqe.psdt()), (0x7F, 1, 1));
    assert_eq!(sqe.0[40..52], [0, 0, 2, 0, 127, 0, 4, 0, 0x88, 0x13, 0, 0]);
    assert_eq!(Connect::decode(&sqe), connect);
    assert_eq!(connect.entries(), 128);
    assert!(connect.disables_sq_flow_control());
    assert_eq!(connect.with_sq_flow_control_disabled(false).cattr, 0);
}

#[test]
fn connect_data_has_the_known_offsets() {
    let data = ConnectData {
        hostid: *b"0123456789abcdef",
        cntlid: ControllerId(0xFFEF),
        subnqn: Nqn::new("nqn.2026-11.io.bowline:s").unwrap(),
        hostnqn: Nqn::new("nqn.2026-11.io.bowline:h").unwrap(),
    };
    let bytes = data.encode();
    assert_eq!(bytes[..18], *b"0123456789abcdef\xEF\xFF");
    assert_eq!(bytes[256..281], *b"nqn.2026-11.io.bowline:s\0");
    assert_eq!(bytes[512..537], *b"nqn.2026-11.io.bowline:h\0");
    assert_eq!(ConnectData::decode(&bytes), Ok(data));
}

#[test]
fn connect_data_says_which_name_is_wrong() {
    let name = Nqn::new("nqn.2026-11.io.bowline:s").unwrap();
    let data = ConnectData {
        hostid: [0; 16],
        cntlid: ControllerId::DYNAMIC,
        subnqn: name,
        hostnqn: name,
    };
    let mut bytes = data.encode();
    bytes[512..768].fill(b'a');
    assert_eq!(ConnectData::decode(&bytes), Err(ConnectInvalid::HOSTNQN));
    bytes[256] = 0;
    assert_eq!(ConnectData::decode(&bytes), Err(ConnectInvalid::SUBNQN));
    // What a Linux host logs for an unknown subsystem.
    assert_eq!(ConnectInvalid::SUBNQN.encode(), 0x1_0100);
    assert_eq!(ConnectInvalid::SQSIZE.encode(), 44);
    for invalid in [
        ConnectInvalid::CNTLID,
        ConnectInvalid::QID,
        ConnectInvalid::HOSTID,
    ] {
        assert_eq!(ConnectInvalid::decode(invalid.encode()), invalid);
    }
}

#[test]
fn connect_result_puts_atr_at_bit_17() {
    let result = ConnectResult {
        cntlid: ControllerId(0x1234),
        authentication_required: true,
        secure_channel_required: false,
    };
    assert_eq!(result.encode(), 0x2_1234);
    assert_eq!(ConnectResult::decode(0x2_1234), result);
    assert!(ConnectResult::decode(0x4_0000).secure_channel_required);
}

#[test]
fn property_commands_have_the_known_bytes() {
    let get = PropertyGet::qword(offset::CAP);
    assert_eq!(get.encode().0[40..48], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(PropertyGet::decode(&get.encode()), get);
    let get = PropertyGet::dword(offset::CSTS);
    assert_eq!(get.encode().0[40..48], [0, 0, 0, 0, 0x1C, 0, 0, 0]);
    let set = PropertySet::dword(offset::CC, 0x0046_0001);
    let sqe = set.encode();
    assert_eq!((sqe.opcode(), sqe.fctype()), (0x7F, 0));
    assert_eq!(sqe.0[40..56], *b"\0\0\0\0\x14\0\0\0\x01\0\x46\0\0\0\0\0");
    assert_eq!(PropertySet::decode(&sqe), set);
    assert_eq!(set.value_dword(), 0x0046_0001);
}

#[test]
fn disconnect_round_trips() {
    let sqe = Disconnect { recfmt: 0 }.encode();
    assert_eq!((sqe.opcode(), sqe.fctype()), (0x7F, 8));
    assert_eq!(Disconnect::decode(&sqe).recfmt, 0);
}

#[test]
fn cap_fields_are_where_linux_reads_them() {
    let cap = Cap::default()
        .with_mqes(127)
        .with_cqr(true)
        .with_to(30)
        .with_css(Cap::CSS_NVM)
        .with_mpsmax(4)
        .with_crwms(true);
    assert_eq!(
        cap.0,
        127 | 1 << 16 | 30 << 24 | 1 << 37 | 4 << 52 | 1 << 59
    );
    assert_eq!(cap.queue_entries_max(), 128);
    assert_eq!(cap.ready_timeout(), crate::Nanos::from_secs(15));
    assert_eq!(
        (cap.mqes(), cap.to(), cap.css(), cap.mpsmax()),
        (127, 30, 1, 4)
    );
    assert_eq!(cap.page_bytes_min(), 4096);
    assert!(cap.cqr() && cap.crwms() && !cap.crims() && !cap.nssrs());
    assert_eq!(Cap(u64::MAX).with_to(0).0, !(0xFF << 24));
}

#[test]
fn cc_of_a_linux_host_reads_back() {
    let cc = Cc(0x0046_0001);
    assert!(cc.en() && !cc.crime());
    assert_eq!(
        (cc.iosqes(), cc.iocqes(), cc.css(), cc.mps(), cc.ams()),
        (6, 4, 0, 0, 0)
    );
    let written = Cc::default().with_en(true).with_iosqes(6).with_iocqes(4);
    assert_eq!(written, cc);
    for (shn, meaning) in [
        (0, Shn::None),
        (1, Shn::Normal),
        (2, Shn::Abrupt),
        (3, Shn::Reserved),
    ] {
        assert_eq!(cc.with_shn(shn).shutdown(), meaning);
        assert_eq!(cc.with_shn(shn).0, 0x0046_0001 | u32::from(shn) << 14);
    }
}

#[test]
fn csts_and_crto_have_the_known_bits() {
    let csts = Csts::default()
        .with_rdy(true)
        .with_cfs(true)
        .with_shutdown(Shst::Complete);
    assert_eq!(csts.0, 0b1011);
    assert_eq!(csts.shutdown(), Shst::Complete);
    for shst in [Shst::None, Shst::InProgress, Shst::Reserved] {
        assert_eq!(csts.with_shutdown(shst).shutdown(), shst);
    }
    assert_eq!(Crto::default().with_crwmt(30).with_crimt(2).0, 0x0002_001E);
}

#[test]
fn version_orders_and_prints() {
    extern crate std;
    use std::string::ToString;
    assert_eq!(Version::V2_0.0, 0x0002_0000);
    assert!(Version::V1_4 < Version::V2_0 && Version::V1_3 < Version::V1_4);
    assert_eq!(Version::new(1, 2, 1).to_string(), "1.2.1");
}
