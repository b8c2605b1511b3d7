//! The whole interface in one life of a process, over SPDK or over the double: the environment can be
//! set up only once.

#![cfg(any(feature = "spdk", feature = "double"))]

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use bowline_spdk_sys::*;

const CONFIG: &str = r#"{"subsystems": [{"subsystem": "bdev", "config": [
    {"method": "bdev_malloc_create", "params": {"name": "M0", "num_blocks": 2048, "block_size": 512}},
    {"method": "bdev_null_create", "params": {"name": "N0", "num_blocks": 2048, "block_size": 512}},
    {"method": "bdev_malloc_create", "params": {"name": "M1", "num_blocks": 2048, "block_size": 512}},
    {"method": "bdev_error_create", "params": {"base_name": "M1"}}
]}]}"#;

/// The `Cell` behind a context.
///
/// # Safety
/// `context` came from a live `Cell<Option<T>>` and is used on its thread.
unsafe fn put<T>(context: *mut c_void, value: T) {
    // SAFETY: as the caller says.
    unsafe { &*context.cast::<Cell<Option<T>>>() }.set(Some(value));
}

fn context<T>(cell: &Cell<Option<T>>) -> *mut c_void {
    ptr::from_ref(cell).cast_mut().cast()
}

unsafe extern "C" fn done(context: *mut c_void, result: c_int) {
    // SAFETY: the context is a cell that lives until this is called.
    unsafe { put(context, result) }
}

unsafe extern "C" fn io_done(context: *mut c_void, status: u16) {
    // SAFETY: as above.
    unsafe { put(context, status) }
}

unsafe extern "C" fn on_event(context: *mut c_void, event: shim_bdev_event) {
    // SAFETY: as above.
    unsafe { put(context, event) }
}

unsafe extern "C" fn count(context: *mut c_void) -> bool {
    // SAFETY: the context is a cell that outlives the poller.
    let cell = unsafe { &*context.cast::<Cell<u32>>() };
    cell.set(cell.get() + 1);
    false
}

unsafe extern "C" fn name_of(context: *mut c_void, info: *const shim_bdev_info) {
    // SAFETY: the context is a list that outlives the call; the description is valid during it.
    let (names, info) = unsafe { (&*context.cast::<RefCell<Vec<String>>>(), &*info) };
    names.borrow_mut().push(text(&info.name));
}

fn text(bytes: &[c_char]) -> String {
    // SAFETY: the shim ends every name with a NUL within its bounds.
    let text = unsafe { CStr::from_ptr(bytes.as_ptr()) };
    text.to_string_lossy().into_owned()
}

/// One thread of the library, polled by this one.
struct Life {
    thread: *mut shim_thread,
}

impl Life {
    fn begin() -> Self {
        let options = shim_env_options {
            name: c"bowline-spdk-sys-test".as_ptr(),
            memory_mib: 512,
            no_huge: true,
            no_pci: true,
            huge_folder: ptr::null(),
            pci_allowed: ptr::null(),
            pci_allowed_count: 0,
        };
        // SAFETY: first calls of the process, in the order the header asks for.
        let thread = unsafe {
            assert_eq!(shim_env_init(&raw const options), 0);
            assert_eq!(shim_env_init(&raw const options), -libc_ealready());
            assert_eq!(shim_threads_init(), 0);
            let thread = shim_thread_create(c"app".as_ptr());
            shim_thread_set(thread);
            thread
        };
        assert!(!thread.is_null());
        Self { thread }
    }

    /// Polls until the cell has a value.
    fn wait<T>(&self, cell: &Cell<Option<T>>) -> T {
        loop {
            if let Some(value) = cell.take() {
                return value;
            }
            // SAFETY: the thread lives, and this is the one that polls it.
            unsafe { shim_thread_poll(self.thread, 0) };
        }
    }

    fn configure(&self, json: &str) -> c_int {
        let cell = Cell::new(None);
        // SAFETY: text and cell live until the end was told.
        unsafe { shim_configure(json.as_ptr().cast(), json.len(), Some(done), context(&cell)) };
        self.wait(&cell)
    }

    /// Makes a request and waits for its status.
    fn io(&self, start: impl FnOnce(*mut shim_request) -> c_int) -> u16 {
        let cell = Cell::new(None);
        let mut request = shim_request {
            done: Some(io_done),
            context: context(&cell),
        };
        assert_eq!(start(&raw mut request), 0);
        assert_eq!(cell.take(), None, "told before the function returned");
        self.wait(&cell)
    }
}

fn libc_ealready() -> c_int {
    114
}

fn slice(bytes: &mut [u8]) -> shim_slice {
    shim_slice {
        base: bytes.as_mut_ptr().cast(),
        bytes: bytes.len(),
    }
}

/// Reads or writes.
type Transfer = unsafe extern "C" fn(
    *mut shim_bdev_desc,
    *mut shim_channel,
    *const shim_slice,
    u32,
    u64,
    u64,
    *mut shim_request,
) -> c_int;

struct Open {
    desc: *mut shim_bdev_desc,
    channel: *mut shim_channel,
    event: Box<Cell<Option<shim_bdev_event>>>,
}

impl Open {
    fn new(name: &CStr) -> Self {
        let event = Box::new(Cell::new(None));
        let mut desc = ptr::null_mut();
        // SAFETY: the cell is boxed and lives until the descriptor is closed.
        let channel = unsafe {
            let rc = shim_bdev_open(
                name.as_ptr(),
                true,
                Some(on_event),
                context(&event),
                &raw mut desc,
            );
            assert_eq!(rc, 0, "{name:?}");
            shim_bdev_channel(desc)
        };
        assert!(!channel.is_null());
        Self {
            desc,
            channel,
            event,
        }
    }

    fn info(&self) -> shim_bdev_info {
        let mut info = shim_bdev_info::default();
        // SAFETY: the descriptor is open.
        unsafe { shim_bdev_info(self.desc, &raw mut info) };
        info
    }

    fn write(&self, life: &Life, block: u64, bytes: &mut [u8]) -> u16 {
        self.transfer(life, shim_bdev_write, block, bytes)
    }

    fn read(&self, life: &Life, block: u64, bytes: &mut [u8]) -> u16 {
        self.transfer(life, shim_bdev_read, block, bytes)
    }

    fn transfer(&self, life: &Life, function: Transfer, block: u64, bytes: &mut [u8]) -> u16 {
        let piece = slice(bytes);
        let blocks = bytes.len() as u64 / 512;
        // SAFETY: piece and payload live until the end was told.
        life.io(|request| unsafe {
            function(
                self.desc,
                self.channel,
                &raw const piece,
                1,
                block,
                blocks,
                request,
            )
        })
    }

    fn close(self) {
        // SAFETY: nothing is running, and channel and descriptor are this thread's.
        unsafe {
            shim_channel_put(self.channel);
            shim_bdev_close(self.desc);
        }
    }
}

#[test]
fn from_the_environment_to_the_last_descriptor() {
    let life = Life::begin();
    pollers_run(&life);
    let started: Cell<Option<c_int>> = Cell::new(None);
    // SAFETY: text and cell live until the end was told.
    unsafe {
        let (text, bytes) = (CONFIG.as_ptr().cast(), CONFIG.len());
        shim_subsystems_start(text, bytes, Some(done), context(&started));
    }
    assert_eq!(life.wait(&started), 0);

    let names: RefCell<Vec<String>> = RefCell::new(Vec::new());
    // SAFETY: the list outlives the call.
    unsafe { shim_bdev_for_each(Some(name_of), ptr::from_ref(&names).cast_mut().cast()) };
    names.borrow_mut().sort();
    assert_eq!(names.into_inner(), ["EE_M1", "M0", "M1", "N0"]);

    data_is_kept(&life);
    requests_that_make_no_sense_are_refused(&life);
    injected_errors_are_told(&life);
    resize_and_removal_are_told(&life);
    wrong_configurations_fail(&life);

    let stopped: Cell<Option<c_int>> = Cell::new(None);
    // SAFETY: every descriptor is closed; the cell lives until the end was told.
    unsafe { shim_subsystems_stop(Some(done), context(&stopped)) };
    assert_eq!(life.wait(&stopped), 0);
    // SAFETY: nothing is left on the thread.
    unsafe {
        assert_eq!(shim_thread_exit(life.thread), 0);
        while !shim_thread_is_exited(life.thread) {
            shim_thread_poll(life.thread, 0);
        }
        shim_thread_destroy(life.thread);
        shim_threads_fini();
        shim_env_fini();
    }
}

fn pollers_run(life: &Life) {
    let (often, seldom) = (Cell::new(0_u32), Cell::new(0_u32));
    // SAFETY: the cells outlive the pollers, which are gone before this returns.
    unsafe {
        assert!(!shim_thread_has_active_pollers(life.thread));
        let first = shim_poller_register(Some(count), ptr::from_ref(&often).cast_mut().cast(), 0);
        let hour = 3_600_000_000;
        let second =
            shim_poller_register(Some(count), ptr::from_ref(&seldom).cast_mut().cast(), hour);
        assert!(shim_thread_has_active_pollers(life.thread));
        assert!((0..=3_600_000_000).contains(&shim_thread_next_poll_us(life.thread)));
        for _ in 0..3 {
            shim_thread_poll(life.thread, 0);
        }
        shim_poller_unregister(first);
        shim_poller_unregister(second);
        shim_thread_poll(life.thread, 0);
        assert!(!shim_thread_has_active_pollers(life.thread));
    }
    assert_eq!((often.get(), seldom.get()), (3, 0));
}

fn data_is_kept(life: &Life) {
    let open = Open::new(c"M0");
    let info = open.info();
    assert_eq!(text(&info.name), "M0");
    assert_eq!((info.block_bytes, info.blocks), (512, 2048));
    assert!(info.write_cache, "as SPDK has it for memory");
    let wanted = SHIM_BDEV_READ | SHIM_BDEV_WRITE | SHIM_BDEV_UNMAP | SHIM_BDEV_WRITE_ZEROES;
    assert_eq!(info.operations & wanted, wanted);

    let mut bytes = vec![7; 1024];
    assert_eq!(open.write(life, 3, &mut bytes), 0);
    let mut found = vec![1; 2048];
    assert_eq!(open.read(life, 2, &mut found), 0);
    assert_eq!(found, [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());

    let mut compare = vec![7; 512];
    let mut write = vec![8; 512];
    let mut pair = |compare: &mut [u8]| {
        let (old, new) = (slice(compare), slice(&mut write));
        // SAFETY: pieces and payload live until the end was told.
        life.io(|request| unsafe {
            let (desc, channel) = (open.desc, open.channel);
            shim_bdev_compare_and_write(
                desc,
                channel,
                &raw const old,
                1,
                &raw const new,
                1,
                4,
                1,
                request,
            )
        })
    };
    assert_eq!(pair(&mut compare), 0);
    assert_eq!(pair(&mut compare), 0x285, "compare failure");

    // SAFETY: no payload.
    let status = life
        .io(|request| unsafe { shim_bdev_write_zeroes(open.desc, open.channel, 3, 1, request) });
    assert_eq!(status, 0);
    // SAFETY: no payload.
    let status =
        life.io(|request| unsafe { shim_bdev_flush(open.desc, open.channel, 0, 2048, request) });
    assert_eq!(status, 0);
    assert_eq!(open.read(life, 2, &mut found), 0);
    let expected = [vec![0; 1024], vec![8; 512], vec![0; 512]].concat();
    assert_eq!(found, expected);
    open.close();
}

fn requests_that_make_no_sense_are_refused(life: &Life) {
    let open = Open::new(c"M0");
    let mut desc = ptr::null_mut();
    let event: Cell<Option<shim_bdev_event>> = Cell::new(None);
    // SAFETY: nothing is opened, so nothing is kept.
    unsafe {
        let none = shim_bdev_open(
            c"none".as_ptr(),
            true,
            Some(on_event),
            context(&event),
            &raw mut desc,
        );
        assert_eq!(none, -19, "ENODEV");
        let second = shim_bdev_open(
            c"M0".as_ptr(),
            true,
            Some(on_event),
            context(&event),
            &raw mut desc,
        );
        assert!(
            second == -1 || second == -16,
            "EPERM or EBUSY, not {second}"
        );
    }
    let cell: Cell<Option<u16>> = Cell::new(None);
    let mut request = shim_request {
        done: Some(io_done),
        context: context(&cell),
    };
    let mut bytes = vec![0; 512];
    let piece = slice(&mut bytes);
    // SAFETY: refused, so nothing is kept.
    let rc = unsafe {
        shim_bdev_read(
            open.desc,
            open.channel,
            &raw const piece,
            1,
            2048,
            1,
            &raw mut request,
        )
    };
    assert_eq!(rc, -22, "EINVAL");
    // SAFETY: refused, so nothing is kept.
    let rc = unsafe {
        shim_bdev_read(
            open.desc,
            open.channel,
            &raw const piece,
            1,
            0,
            2,
            &raw mut request,
        )
    };
    assert_eq!(rc, -22, "memory for one block, and two of the device");
    assert_eq!(open.read(life, 2047, &mut bytes), 0);
    assert_eq!(cell.take(), None, "what was refused is not told");
    open.close();
}

fn injected_errors_are_told(life: &Life) {
    let open = Open::new(c"EE_M1");
    let mut bytes = vec![5; 512];
    assert_eq!(open.write(life, 0, &mut bytes), 0);
    let inject = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_error_inject_error",
         "params": {"name": "EE_M1", "io_type": "read", "error_type": "failure", "num": 2}}]}]}"#;
    assert_eq!(life.configure(inject), 0);
    assert_ne!(open.read(life, 0, &mut bytes), 0);
    assert_eq!(open.write(life, 1, &mut bytes), 0, "only reads fail");
    assert_ne!(open.read(life, 0, &mut bytes), 0);
    assert_eq!(open.read(life, 0, &mut bytes), 0, "only two of them");
    assert_eq!(bytes, [5; 512]);
    open.close();
}

fn resize_and_removal_are_told(life: &Life) {
    let null = Open::new(c"N0");
    let resize = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_null_resize", "params": {"name": "N0", "new_size": 2}}]}]}"#;
    assert_eq!(life.configure(resize), 0);
    assert_eq!(life.wait(&null.event), SHIM_BDEV_RESIZED);
    assert_eq!(null.info().blocks, 4096);
    null.close();

    let open = Open::new(c"M0");
    let delete = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_malloc_delete", "params": {"name": "M0"}}]}]}"#;
    let deleted: Cell<Option<c_int>> = Cell::new(None);
    // SAFETY: text and cell live until the end was told.
    unsafe {
        let (text, bytes) = (delete.as_ptr().cast(), delete.len());
        shim_configure(text, bytes, Some(done), context(&deleted));
    }
    assert_eq!(life.wait(&open.event), SHIM_BDEV_REMOVED);
    assert_eq!(deleted.take(), None, "it waits for the descriptor");
    open.close();
    assert_eq!(life.wait(&deleted), 0);
}

fn wrong_configurations_fail(life: &Life) {
    for wrong in [
        "",
        "{",
        "[]",
        r#"{"subsystems": [{"subsystem": "bdev", "config": [{"method": "no_such_method"}]}]}"#,
        r#"{"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_malloc_delete", "params": {"name": "none"}}]}]}"#,
    ] {
        assert_ne!(life.configure(wrong), 0, "{wrong}");
    }
}
