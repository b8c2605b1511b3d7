/*
 * What bowline uses of SPDK, in plain C: opaque handles, plain structures, functions.
 *
 * The Rust bindings are made from this header alone, so they do not depend on which SPDK was found or
 * how it was built. `spdk/` implements it over SPDK, and no other folder includes its headers; `double/`
 * implements it over memory, for machines without SPDK.
 *
 * Conventions, unless a function says otherwise:
 * - An `int` result is 0, or a negative errno.
 * - Strings are UTF-8 and end with a NUL; one that is passed in is not kept.
 * - A callback runs inside `shim_thread_poll` of the thread on which its function was called.
 * - Functions that take a thread, channel or descriptor are called on the thread it belongs to.
 */
#ifndef BOWLINE_SPDK_SHIM_H
#define BOWLINE_SPDK_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- The library ------------------------------------------------------------------------------ */

/* The SPDK behind this header, for people: "SPDK v24.09". Static. */
const char *shim_version(void);

/* Whether this is the double, which keeps its devices in memory and loses them with the process. */
bool shim_is_double(void);

enum shim_log_level {
	SHIM_LOG_ERROR = 0,
	SHIM_LOG_WARN = 1,
	SHIM_LOG_NOTICE = 2,
	SHIM_LOG_INFO = 3,
	SHIM_LOG_DEBUG = 4,
};

/*
 * One line of log without its newline. `file` and `function` may be null. Called on any thread,
 * during any function of this header.
 */
typedef void (*shim_log_fn)(enum shim_log_level level, const char *file, int line,
			    const char *function, const char *message);

/* Sends the library's log to `log`, from `level` on up to errors. Before it, SPDK writes to stderr. */
void shim_log_open(shim_log_fn log, enum shim_log_level level);

/* --- The environment: memory and PCI, once per process ----------------------------------------- */

struct shim_env_options {
	/* Name of the process in the environment's files. Required. */
	const char *name;
	/* Memory for DMA to set aside in MiB, at most INT_MAX; 0: what the library takes by itself. */
	uint32_t memory_mib;
	/* Ordinary pages instead of huge ones; no device on PCI can be used then. */
	bool no_huge;
	/* Leave PCI alone. */
	bool no_pci;
	/* Where huge pages are mounted; null: where the library finds them. */
	const char *huge_folder;
	/* PCI addresses ("0000:01:00.0") that may be touched; none given: all. */
	const char *const *pci_allowed;
	size_t pci_allowed_count;
};

/*
 * Sets the environment up. The calling thread becomes its main thread, and may go on to run on
 * every core that it could run on before. -EALREADY when it was set up before; it cannot be set up again after `shim_env_fini`.
 */
int shim_env_init(const struct shim_env_options *options);

/*
 * Gives the environment's resources back, after everything else has been closed. A process that exits
 * without it ends at once, without the destructors of libraries: they would take memory away from
 * threads that still run.
 */
void shim_env_fini(void);

/*
 * The device at this PCI address ("0000:01:00.0") if it is bound to a driver for user space: a number that is
 * another one for what is put there after it was pulled out; else 0. On any thread.
 */
uint64_t shim_pci_bound(const char *address);

/* DMA memory of at least `bytes` at a multiple of `align` (a power of two), zeroed; null: none. */
void *shim_dma_alloc(size_t bytes, size_t align);
void shim_dma_free(void *memory);

/* --- Threads: what runs callbacks, polled by a real thread -------------------------------------- */

typedef struct shim_thread shim_thread;
typedef struct shim_poller shim_poller;

/* Sets the thread library up, after the environment. */
int shim_threads_init(void);
void shim_threads_fini(void);

/*
 * A thread of the library. The first one is the application's, on which subsystems begin and end.
 * It belongs to the real thread that polls it. Null: no memory.
 */
shim_thread *shim_thread_create(const char *name);

/* Makes `thread`, or none, current on the calling real thread; functions below want one. */
void shim_thread_set(shim_thread *thread);

/* The current thread, or null. */
shim_thread *shim_thread_current(void);

/*
 * Runs up to `messages_max` messages (0: a few) and all pollers that are due. Returns whether
 * anything was done. Makes `thread` current for the time of the call.
 */
bool shim_thread_poll(shim_thread *thread, uint32_t messages_max);

/* Whether a poller wants to run on every poll. */
bool shim_thread_has_active_pollers(const shim_thread *thread);

/* Microseconds from now until the next poller with a period is due; 0: due now; -1: there is none. */
int64_t shim_thread_next_poll_us(const shim_thread *thread);

typedef void (*shim_message_fn)(void *context);

/* Has `message` run on `thread`, from any real thread. -ENOMEM, or -EIO when it has exited. */
int shim_thread_send(const shim_thread *thread, shim_message_fn message, void *context);

/*
 * Begins the end of the current thread: channels must have been given back. Poll until
 * `shim_thread_is_exited`, then destroy it.
 */
int shim_thread_exit(shim_thread *thread);
bool shim_thread_is_exited(const shim_thread *thread);
void shim_thread_destroy(shim_thread *thread);

/* Returns whether it found something to do. */
typedef bool (*shim_poller_fn)(void *context);

/* Runs `poll` on the current thread, every `period_us` microseconds or, when 0, on every poll. */
shim_poller *shim_poller_register(shim_poller_fn poll, void *context, uint64_t period_us);
void shim_poller_unregister(shim_poller *poller);

/* --- Subsystems and their configuration ---------------------------------------------------------- */

/*
 * The end of something begun: 0, or a negative errno. What went wrong is in the log. It may be told
 * before the function that began it has returned.
 */
typedef void (*shim_done_fn)(void *context, int result);

/*
 * Starts the subsystems, on the application's thread, with a JSON configuration as SPDK's tools write
 * it ({"subsystems": [{"subsystem": "bdev", "config": [{"method": ..., "params": {...}}]}]}) or none
 * (null). `done` is told after the last method of it has ended and the devices that it made can be
 * opened, or after the first method that failed.
 * After a failure only `shim_subsystems_stop` may follow.
 */
void shim_subsystems_start(const char *json, size_t json_bytes, shim_done_fn done, void *context);

/*
 * Runs the methods of a further configuration in the started subsystems, on the application's
 * thread; one at a time. Methods that SPDK takes before its subsystems begin as well belong in the
 * first one: here it passes over them.
 */
void shim_configure(const char *json, size_t json_bytes, shim_done_fn done, void *context);

/* Ends the subsystems, on the application's thread, after every descriptor was closed. */
void shim_subsystems_stop(shim_done_fn done, void *context);

/* --- Block devices -------------------------------------------------------------------------------- */

typedef struct shim_bdev_desc shim_bdev_desc;
typedef struct shim_channel shim_channel;

/*
 * Bits of `shim_bdev_info.operations`: what can be asked, be it that SPDK does it itself with what the
 * device can. Flush is not among them where SPDK would answer it without asking the drive: before
 * 25.09, and after that if a configuration says so (`enable_flush` of `bdev_nvme_set_options`, which is
 * set when the subsystems start).
 */
enum shim_bdev_operation {
	SHIM_BDEV_READ = 1 << 0,
	SHIM_BDEV_WRITE = 1 << 1,
	SHIM_BDEV_FLUSH = 1 << 2,
	SHIM_BDEV_UNMAP = 1 << 3,
	SHIM_BDEV_WRITE_ZEROES = 1 << 4,
	SHIM_BDEV_COMPARE = 1 << 5,
	SHIM_BDEV_COMPARE_AND_WRITE = 1 << 6,
	SHIM_BDEV_RESET = 1 << 7,
};

#define SHIM_NAME_BYTES 128

struct shim_bdev_info {
	/* Cut where they are longer than SHIM_NAME_BYTES - 1. */
	char name[SHIM_NAME_BYTES];
	char product[SHIM_NAME_BYTES];
	/* The module that made it: "nvme", "malloc"... */
	char module[SHIM_NAME_BYTES];
	uint8_t uuid[16];
	/* Bytes of a logical block without metadata, and their number. */
	uint32_t block_bytes;
	uint64_t blocks;
	/* Bytes of metadata that go with each block; such a device cannot be opened by us. */
	uint32_t metadata_bytes;
	/* Bytes that the medium writes as one. */
	uint32_t physical_block_bytes;
	/* Blocks by which every write has to be aligned and sized. */
	uint32_t write_unit_blocks;
	/* Blocks that compare-and-write compares and writes as one, at most. */
	uint32_t compare_and_write_blocks;
	/* Blocks after which a request had better end; 0: no matter. */
	uint32_t optimal_boundary_blocks;
	/* Multiple of bytes at which payload has to begin in memory. */
	uint32_t buffer_align;
	/* Written data may be lost before a flush. */
	bool write_cache;
	/* Bits of `enum shim_bdev_operation`. */
	uint32_t operations;
};

/* Calls `each` with every device there is, on the application's thread. */
typedef void (*shim_bdev_each_fn)(void *context, const struct shim_bdev_info *info);
void shim_bdev_for_each(shim_bdev_each_fn each, void *context);

/*
 * Looks at everything that the kernel has told of drives coming and going, on the application's thread.
 * SPDK takes little of it at a time, and would take the end of a drive for that of another one that was
 * attached at the same address since.
 */
void shim_nvme_catch_up(void);

/* By what a namespace of an NVMe drive is known, wherever it is. Zeroes and "" where it does not say. */
struct shim_nvme_identity {
	/* Of the drive, without what fills them up. */
	char serial[21];
	char model[41];
	/* Of the namespace: its identifier in the drive, and its names in the world. */
	uint32_t nsid;
	uint8_t nguid[16];
	uint8_t eui64[8];
	uint8_t uuid[16];
};

/* On the application's thread. -ENODEV: there is none of this name; -ENOTSUP: it is no NVMe drive. */
int shim_bdev_nvme_identity(const char *name, struct shim_nvme_identity *identity);

enum shim_bdev_event {
	/* The device goes: end what is running, give channels back, close the descriptor. */
	SHIM_BDEV_REMOVED = 0,
	/* Its number of blocks has changed. */
	SHIM_BDEV_RESIZED = 1,
};

typedef void (*shim_bdev_event_fn)(void *context, enum shim_bdev_event event);

/*
 * Opens a device, exclusively for writing when `write` is set: no other may write to it then.
 * Events come on the current thread, until it is closed. -ENODEV: there is none of this name;
 * -EPERM or -EBUSY: somebody else has it.
 */
int shim_bdev_open(const char *name, bool write, shim_bdev_event_fn event, void *context,
		   shim_bdev_desc **desc);

/* On the thread that opened it, after all channels were given back. */
void shim_bdev_close(shim_bdev_desc *desc);

void shim_bdev_info(const shim_bdev_desc *desc, struct shim_bdev_info *info);

/* The current thread's own queue to the device; null: no memory. */
shim_channel *shim_bdev_channel(shim_bdev_desc *desc);

/* After the last request on it has ended. */
void shim_channel_put(shim_channel *channel);

/* A piece of payload, laid out as struct iovec. */
struct shim_slice {
	void *base;
	size_t bytes;
};

/*
 * The end of a request: an NVMe status, type in bits 10:8 and code in bits 7:0, 0 for success. Errors
 * that do not come from an NVMe device are told as the nearest status.
 */
typedef void (*shim_io_fn)(void *context, uint16_t status);

/* Whom to tell. The caller's, so that a request costs no memory; it stays where it is until `done`. */
struct shim_request {
	shim_io_fn done;
	void *context;
};

/*
 * Requests, on the thread of the channel. 0: `done` will be called, but not before the function has
 * returned. -ENOMEM: too many are on their way; try again after the next poll. (What is short is
 * shared by all channels of the thread, and comes back in its polls, so a list of who waits, as SPDK
 * could keep one, would not be told of it any earlier.) -EINVAL: the range is not within the device or has no blocks (a flush
 * need not), or the slices are not together as long as the blocks. Other errors: the request makes no sense for this device. Payload,
 * slices and request stay as they are until `done`.
 */
int shim_bdev_read(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		   uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request);
int shim_bdev_write(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		    uint32_t slice_count, uint64_t block, uint64_t blocks,
		    struct shim_request *request);
/* A difference ends as media error 0x85 of type 2. */
int shim_bdev_compare(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		      uint32_t slice_count, uint64_t block, uint64_t blocks,
		      struct shim_request *request);
int shim_bdev_compare_and_write(shim_bdev_desc *desc, shim_channel *channel,
				const struct shim_slice *compare, uint32_t compare_count,
				const struct shim_slice *write, uint32_t write_count, uint64_t block,
				uint64_t blocks, struct shim_request *request);
int shim_bdev_flush(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		    struct shim_request *request);
int shim_bdev_unmap(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		    struct shim_request *request);
int shim_bdev_write_zeroes(shim_bdev_desc *desc, shim_channel *channel, uint64_t block,
			   uint64_t blocks, struct shim_request *request);
int shim_bdev_reset(shim_bdev_desc *desc, shim_channel *channel, struct shim_request *request);

#endif
