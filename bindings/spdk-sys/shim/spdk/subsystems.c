/* Subsystems and their configuration. */
#define _GNU_SOURCE
#include "spdk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <spdk/init.h>
#include <spdk/rpc.h>
#if SPDK_VERSION >= SPDK_VERSION_NUM(25, 9, 0)
#include <spdk/module/bdev/nvme.h>
#endif

/* Unless it is asked to, SPDK answers a flush of a drive by itself. A configuration may say otherwise. */
static int
ask_for_flushes(void)
{
#if SPDK_VERSION >= SPDK_VERSION_NUM(25, 9, 0)
	struct spdk_bdev_nvme_opts opts;

	spdk_bdev_nvme_get_opts(&opts, sizeof(opts));
	opts.enable_flush = true;
	return spdk_bdev_nvme_set_opts(&opts);
#else
	return 0;
#endif
}

bool
bowline_drives_are_flushed(void)
{
#if SPDK_VERSION >= SPDK_VERSION_NUM(25, 9, 0)
	struct spdk_bdev_nvme_opts opts;

	spdk_bdev_nvme_get_opts(&opts, sizeof(opts));
	return opts.enable_flush;
#else
	return false;
#endif
}

/* Something begun, and whom to tell of its end. */
struct notice {
	shim_done_fn done;
	void *context;
	/* The configuration of a start, with a NUL behind it; null: none. */
	char *json;
	size_t json_bytes;
};

static struct notice *
make_notice(shim_done_fn done, void *context)
{
	struct notice *notice = calloc(1, sizeof(*notice));

	if (notice == NULL) {
		done(context, -ENOMEM);
		return NULL;
	}
	notice->done = done;
	notice->context = context;
	return notice;
}

static void
tell(int rc, void *arg)
{
	struct notice notice = *(struct notice *)arg;

	free(notice.json);
	free(arg);
	notice.done(notice.context, rc);
}

static void
examined(void *arg)
{
	tell(0, arg);
}

/* Modules look at each new device, and have it for themselves meanwhile. */
static void
configured(int rc, void *arg)
{
	if (rc == 0) {
		rc = spdk_bdev_wait_for_examine(examined, arg);
	}
	if (rc != 0) {
		tell(rc, arg);
	}
}

/*
 * Runs the methods that belong to the current state. The text is copied before this returns. Before
 * 24.05, SPDK reads a file, and if the subsystems have not begun it has them begin as well, and runs
 * the methods that belong after that.
 */
static void
load(const char *json, size_t json_bytes, spdk_subsystem_init_fn done, struct notice *notice)
{
#if SPDK_VERSION >= SPDK_VERSION_NUM(24, 5, 0)
	spdk_subsystem_load_config((void *)(uintptr_t)json, (ssize_t)json_bytes, done, notice, true);
#else
	char path[32];
	int fd = memfd_create("bowline-spdk", MFD_CLOEXEC);

	if (fd < 0) {
		done(-errno, notice);
		return;
	}
	if (write(fd, json, json_bytes) == (ssize_t)json_bytes) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		spdk_subsystem_init_from_json_config(path, NULL, done, notice, true);
	} else {
		done(-EIO, notice);
	}
	close(fd);
#endif
}

static void
subsystems_ready(int rc, void *arg)
{
	struct notice *notice = arg;

	if (rc != 0) {
		tell(rc, notice);
		return;
	}
	spdk_rpc_set_state(SPDK_RPC_RUNTIME);
	if (notice->json == NULL) {
		tell(0, notice);
		return;
	}
	load(notice->json, notice->json_bytes, configured, notice);
}

static void
startup_configured(int rc, void *arg)
{
	if (rc != 0) {
		tell(rc, arg);
#if SPDK_VERSION < SPDK_VERSION_NUM(24, 5, 0)
	} else if (((struct notice *)arg)->json != NULL) {
		configured(0, arg);
#endif
	} else {
		spdk_subsystem_init(subsystems_ready, arg);
	}
}

void
shim_subsystems_start(const char *json, size_t json_bytes, shim_done_fn done, void *context)
{
	struct notice *notice = make_notice(done, context);
	int rc;

	if (notice == NULL) {
		return;
	}
	rc = ask_for_flushes();
	if (rc != 0) {
		tell(rc, notice);
		return;
	}
	if (json == NULL) {
		startup_configured(0, notice);
		return;
	}
	notice->json = malloc(json_bytes + 1);
	if (notice->json == NULL) {
		tell(-ENOMEM, notice);
		return;
	}
	memcpy(notice->json, json, json_bytes);
	notice->json[json_bytes] = '\0';
	notice->json_bytes = json_bytes;
	/* Twice: what belongs before the subsystems begin, and what belongs after. */
	load(notice->json, json_bytes, startup_configured, notice);
}

void
shim_configure(const char *json, size_t json_bytes, shim_done_fn done, void *context)
{
	struct notice *notice = make_notice(done, context);

	if (notice != NULL) {
		load(json, json_bytes, configured, notice);
	}
}

static void
stopped(void *arg)
{
	tell(0, arg);
}

void
shim_subsystems_stop(shim_done_fn done, void *context)
{
	struct notice *notice = make_notice(done, context);

	if (notice != NULL) {
		spdk_subsystem_fini(stopped, notice);
	}
}
