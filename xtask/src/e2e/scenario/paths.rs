//! One disk through two data planes: ANA states switch the host from path to path, and paths are
//! killed, under verifying I/O that must see none of it.

use anyhow::{Context, Result};

use super::super::dataplane::{DataPlane, Serves, Setup};
use super::super::image;
use super::super::kernel_log::Phase;
use super::machine::{Machine, sized};
use super::{DISK_BYTES, Scenario};

const NQN: &str = "nqn.2026-11.io.bowline:e2e:paths";

/// The two paths.
const A: usize = 0;
const B: usize = 1;

/// Flags that make a data plane one of two paths: the same disk under the same identity, which
/// derives from the NQN, and controller IDs of its own.
const FLAGS: [&[&str]; 2] = [
    &["--shared-device", "--ana", "--cntlid-range", "1-1000"],
    &[
        "--shared-device",
        "--ana",
        "--ana-state",
        "inaccessible",
        "--cntlid-range",
        "1001-2000",
    ],
];

/// From A optimized and B inaccessible: each step sets one path's state, and names the path that
/// must carry the I/O then, if only one may. The state Change is not among them: it ends by itself
/// after seconds that a busy machine may need for one step.
const SWITCHES: &[(usize, &str, Option<usize>)] = &[
    (B, "optimized", None),
    (A, "inaccessible", Some(B)),
    (A, "non-optimized", Some(B)),
    (B, "inaccessible", Some(A)),
    (B, "non-optimized", None),
    (A, "optimized", Some(A)),
    (A, "inaccessible", Some(B)),
    (B, "optimized", Some(B)),
    (A, "optimized", None),
    (B, "inaccessible", Some(A)),
    (B, "optimized", None),
];

/// The data planes of both paths; `None` only while one is dead on purpose.
struct Paths {
    setups: [Setup; 2],
    planes: [Option<DataPlane>; 2],
    ports: [u16; 2],
}

impl Scenario<'_, Machine> {
    pub(super) fn paths(&mut self) {
        let mut paths = None;
        self.check(
            "two data planes are two paths to one disk",
            Phase::Quiet,
            |this| {
                let paths = paths.insert(this.start_paths()?);
                this.meet(NQN, paths.ports[A])?;
                this.path_appears(paths, A, "optimized")?;
                this.path_appears(paths, B, "inaccessible")
            },
        );
        let Some(mut paths) = paths else {
            return;
        };
        self.check("ANA states switch paths under load", Phase::Ana, |this| {
            this.switches(&paths)
        });
        self.check(
            "kill -9 of one path under load loses nothing",
            Phase::Loss,
            |this| this.kills(&mut paths),
        );
        self.guest_check("disconnect removes both paths", Phase::Quiet, "disconnects");
        self.check("both paths stop cleanly", Phase::Quiet, |_| {
            for plane in &mut paths.planes {
                plane.take().context("no data plane to stop")?.stop()?;
            }
            Ok(())
        });
    }

    fn start_paths(&self) -> Result<Paths> {
        let device = self.subject.setup.allow_path.join("paths");
        sized(&device, DISK_BYTES)?;
        let setups = FLAGS.map(|flags| Setup {
            executable: self.subject.setup.executable.clone(),
            device: device.clone(),
            allow_path: self.subject.setup.allow_path.clone(),
            serves: Serves::Whole(NQN.to_owned()),
            host_nqns: vec![image::HOST_NQN.to_owned()],
            log: self.subject.setup.log.clone(),
            state: None,
            spdk: None,
            flags,
        });
        let planes = [
            DataPlane::start(&setups[A], 0)?,
            DataPlane::start(&setups[B], 0)?,
        ];
        let ports = [planes[A].port, planes[B].port];
        Ok(Paths {
            setups,
            planes: planes.map(Some),
            ports,
        })
    }

    fn path_appears(&mut self, paths: &Paths, path: usize, state: &str) -> Result<()> {
        let port = paths.ports[path];
        self.guest.expect(&format!("adds_path {port}"))?;
        self.path_shows(paths, path, state)
    }

    fn path_shows(&mut self, paths: &Paths, path: usize, state: &str) -> Result<()> {
        let port = paths.ports[path];
        self.guest
            .expect(&format!("path_shows {port} {state}"))
            .map(drop)
    }

    fn switches(&mut self, paths: &Paths) -> Result<()> {
        self.guest.expect("load_starts")?;
        for (path, state, serves) in SWITCHES {
            let plane = paths.planes[*path].as_ref();
            let plane = plane.context("the data plane is not running")?;
            plane.manage(&["ana", "set", NQN, state])?;
            self.path_shows(paths, *path, state)?;
            if let Some(serves) = serves {
                let (on, off) = (paths.ports[*serves], paths.ports[1 - *serves]);
                self.guest.expect(&format!("only_path_moves {on} {off}"))?;
            }
            self.guest.expect("load_goes_on")?;
        }
        self.load_ends()
    }

    /// Each path dies in turn while both can serve; a restart forgets the states that were set.
    fn kills(&mut self, paths: &mut Paths) -> Result<()> {
        self.guest.expect("load_starts")?;
        for (kill, (path, state)) in [(A, "optimized"), (B, "inaccessible")]
            .into_iter()
            .enumerate()
        {
            let plane = paths.planes[path].take();
            plane.context("no data plane to kill")?.kill()?;
            let (on, off) = (paths.ports[1 - path], paths.ports[path]);
            self.guest.expect(&format!("only_path_moves {on} {off}"))?;
            let plane = DataPlane::start(&paths.setups[path], paths.ports[path])?;
            paths.planes[path] = Some(plane);
            self.host_comes_back(kill + 1)?;
            self.path_shows(paths, path, state)?;
            self.guest.expect("load_goes_on")?;
        }
        self.load_ends()
    }
}
