/* What the double's files about devices share. */
#ifndef BOWLINE_SPDK_DOUBLE_BDEV_H
#define BOWLINE_SPDK_DOUBLE_BDEV_H

#include "double.h"

#include <pthread.h>

/* What devices are made of. */
struct medium {
	struct medium *next;
	char name[JSON_STRING_BYTES];
	uint8_t *data;
	size_t bytes;
	/* A file behind it. */
	bool mapped;
	/* Stays when its device goes. */
	bool kept;
	/* Of a drive; empty: the one that all have at first. */
	char serial[21];
	/* Is not in its place. */
	bool pulled;
	/* How often it was put there again. */
	uint64_t plugs;
};

struct running;

struct bdev {
	struct bdev *next;
	char name[SHIM_NAME_BYTES];
	char module[SHIM_NAME_BYTES];
	/* Another one for each device. */
	uint64_t made;
	uint32_t block_bytes;
	uint64_t blocks;
	/* Null for a device that forgets what is written, or is in front of another. */
	struct medium *medium;
	struct bdev *base;
	uint64_t read_us;
	uint64_t write_us;
	struct double_fault fault;
	/* Requests that do not end by themselves. */
	struct running *pending;
	unsigned opened;
	bool writer;
	/* Nobody opens it any more. */
	bool removed;
	/* It is not there: what is asked of it fails. */
	bool vanished;
	/* Who waits for its end. */
	shim_done_fn done;
	void *context;
};

struct shim_bdev_desc {
	struct shim_bdev_desc *next;
	struct bdev *bdev;
	shim_thread *thread;
	shim_bdev_event_fn event;
	void *context;
	bool writer;
};

struct shim_channel {
	shim_thread *thread;
	unsigned running;
};

/* Guards the lists, all devices and what is in them. No callback runs under it. */
extern pthread_mutex_t g_double_lock;
extern struct bdev *g_double_bdevs;

/* --- bdev.c; with the lock held unless it says otherwise ---------------------------------------- */

/* Null: there is none, or it has been removed. */
struct bdev *double_find_bdev(const char *name);
struct medium *double_find_medium(const char *name);
void double_describe(const struct bdev *bdev, struct shim_bdev_info *info);

/* Ends that have to be told once the lock is given back. */
struct ends {
	struct {
		shim_done_fn done;
		void *context;
	} list[8];
	unsigned count;
};

/* Without the lock. */
void double_tell_ends(const struct ends *ends);

/* Who has the device open is told. What waits at one that has `vanished` is aborted. */
void double_begin_removal(struct bdev *bdev, bool vanished, struct running **aborted,
			  struct ends *ends);

/* --- io.c -------------------------------------------------------------------------------------------- */

/* With the lock held: gives up the requests that wait at a device or at those behind it. */
void double_abort_pending(struct bdev *bdev, struct running **aborted);

/* Without the lock: these have ended. */
void double_finish_all(struct running *list);

#endif
