/*
 * A double of SPDK behind shim.h, for machines without it. Threads, pollers, messages, channels, the
 * order of callbacks and the errors are as SPDK has them; what is behind a device is memory of this
 * process, or a file mapped into it. methods.c lists what its configurations may say.
 */
#ifndef BOWLINE_SPDK_DOUBLE_H
#define BOWLINE_SPDK_DOUBLE_H

#include "shim.h"

/* --- library.c: log and threads ---------------------------------------------------------------- */

__attribute__((format(printf, 2, 3)))
void double_log(enum shim_log_level level, const char *format, ...);

/* Microseconds of a clock that never goes back. */
uint64_t double_now_us(void);

/* Something that a thread does at a time to come. It is the caller's until `run`. */
struct double_timer {
	struct double_timer *next;
	shim_message_fn run;
	void *context;
	uint64_t due_us;
};

/* On the current thread. Until it has run, the thread counts as one with an active poller. */
void double_timer_add(struct double_timer *timer);

/* The current thread has one channel more, or fewer. */
void double_thread_count_channels(shim_thread *thread, int change);

/*
 * Tells `done`, on the application's thread: with a message, or at once where that is asked for (see
 * `double_options`) and possible.
 */
void double_tell(shim_done_fn done, void *context, int result);

/* Whether ends are told as early as they can be. */
extern bool g_double_tells_at_once;

/* --- json.c: just enough for configurations ------------------------------------------------------ */

#define JSON_STRING_BYTES 256

struct json {
	const char *at;
	const char *end;
};

/* Each takes what is there, and gives false if it is something else. */
bool json_take(struct json *json, char wanted);
bool json_take_string(struct json *json, char out[JSON_STRING_BYTES]);
bool json_take_number(struct json *json, uint64_t *out);
bool json_take_bool(struct json *json, bool *out);
/* A value of any kind, which is forgotten. */
bool json_skip(struct json *json);

/* --- bdev.c, drives.c, io.c: devices ----------------------------------------------------------- */

/* What a device is made of. */
struct double_bdev {
	const char *name;
	/* As `shim_bdev_info.module`. */
	const char *module;
	/* A device in front of this one; null: one of its own. */
	const char *base_name;
	uint32_t block_bytes;
	uint64_t blocks;
	/* A file that is mapped; null: memory, or nothing for the module "null". */
	const char *file;
	/* By which memory is found again by a device that is made later; null: it goes with the device. */
	const char *medium;
	/* How long reads and writes take. */
	uint64_t read_us;
	uint64_t write_us;
};

/* Whether drives are told to flush. */
bool double_flushes_drives(void);
void double_flush_drives(bool flush);

int double_bdev_create(const struct double_bdev *what);

/*
 * Removes a device, of this module if one is given: `done` is told when everybody has closed it, if
 * it did not fail. With `done` null it goes by itself, and what is asked of it from then on fails.
 */
int double_bdev_remove(const char *name, const char *module, shim_done_fn done, void *context);

/*
 * What is at a PCI address goes, and with it the device made of it, as if by itself; until another, or
 * the same, with this serial number (null: the one it had) is put there.
 */
int double_drive_pull(const char *address);
int double_drive_plug(const char *address, const char *serial);

int double_bdev_resize(const char *name, uint64_t bytes);

/* What becomes of the next requests to a device. */
enum double_fault_kind {
	/* They end with `status`. */
	DOUBLE_FAULT_STATUS,
	/* They do not end before `double_bdev_resume`, or are aborted by a reset. */
	DOUBLE_FAULT_PENDING,
	/* They are refused with -ENOMEM. */
	DOUBLE_FAULT_REFUSED,
};

struct double_fault {
	enum double_fault_kind kind;
	/* Bits of `enum shim_bdev_operation`. */
	uint32_t operations;
	uint16_t status;
	/* How many of them. */
	uint64_t count;
};

int double_bdev_fault(const char *name, const char *module, const struct double_fault *fault);

/* Pending requests go on. */
int double_bdev_resume(const char *name);

/* Forgets all devices. */
void double_bdev_end(void);

#endif
