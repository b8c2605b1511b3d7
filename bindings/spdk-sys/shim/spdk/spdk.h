/* shim.h over SPDK: what the files here share. No others include SPDK's headers. */
#ifndef BOWLINE_SPDK_SPDK_H
#define BOWLINE_SPDK_SPDK_H

#include "shim.h"

#include <spdk/bdev.h>
#include <spdk/version.h>

#if SPDK_VERSION < SPDK_VERSION_NUM(24, 1, 0)
#error "SPDK 24.01 or later is needed"
#endif

struct shim_bdev_desc {
	struct spdk_bdev_desc *desc;
	shim_bdev_event_fn event;
	void *context;
};

static inline struct spdk_io_channel *
to_channel(shim_channel *channel)
{
	return (struct spdk_io_channel *)channel;
}

/* subsystems.c: whether SPDK has drives flush. Before 25.09 it never does. */
bool bowline_drives_are_flushed(void);

#endif
