/* shim.h over SPDK. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <spdk/bdev.h>
#include <spdk/bdev_module.h>
#include <spdk/env.h>
#include <spdk/init.h>
#include <spdk/log.h>
#include <spdk/nvme.h>
#include <spdk/nvme_spec.h>
#include <spdk/rpc.h>
#include <spdk/thread.h>
#include <spdk/uuid.h>
#include <spdk/version.h>
#if SPDK_VERSION >= SPDK_VERSION_NUM(25, 9, 0)
#include <spdk/module/bdev/nvme.h>
#endif

/* As it was called before 24.09. */
#ifndef SPDK_ENV_NUMA_ID_ANY
#define SPDK_ENV_NUMA_ID_ANY SPDK_ENV_SOCKET_ID_ANY
#endif

#if SPDK_VERSION < SPDK_VERSION_NUM(24, 1, 0)
#error "SPDK 24.01 or later is needed"
#endif

_Static_assert(sizeof(struct shim_slice) == sizeof(struct iovec), "a slice is an iovec");
_Static_assert(offsetof(struct shim_slice, base) == offsetof(struct iovec, iov_base), "iovec");
_Static_assert(offsetof(struct shim_slice, bytes) == offsetof(struct iovec, iov_len), "iovec");
_Static_assert((int)SHIM_LOG_ERROR == (int)SPDK_LOG_ERROR, "levels are SPDK's");
_Static_assert((int)SHIM_LOG_DEBUG == (int)SPDK_LOG_DEBUG, "levels are SPDK's");

/* --- The library ------------------------------------------------------------------------------ */

const char *
shim_version(void)
{
	return SPDK_VERSION_STRING;
}

bool
shim_is_double(void)
{
	return false;
}

static shim_log_fn g_log;
static enum shim_log_level g_log_level;

static void
log_line(int level, const char *file, const int line, const char *function, const char *format,
	 va_list args)
{
	char message[1024];
	int length = vsnprintf(message, sizeof(message), format, args);

	/* A library that has a function for its log leaves levels to it. */
	if (length < 0 || level > (int)g_log_level) {
		return;
	}
	if ((size_t)length >= sizeof(message)) {
		length = sizeof(message) - 1;
	}
	while (length > 0 && message[length - 1] == '\n') {
		message[--length] = '\0';
	}
	g_log((enum shim_log_level)level, file, line, function, message);
}

void
shim_log_open(shim_log_fn log, enum shim_log_level level)
{
	g_log = log;
	g_log_level = level;
	spdk_log_set_level((enum spdk_log_level)level);
	spdk_log_set_print_level((enum spdk_log_level)level);
	spdk_log_open(log_line);
}

/* --- The environment ---------------------------------------------------------------------------- */

static bool g_env_done;
static atomic_bool g_env_in_use;

/* DPDK's destructor unmaps all memory, whoever uses it: nothing but the process's end comes after. */
static void
leave(int status, void *unused)
{
	(void)unused;
	if (atomic_load(&g_env_in_use)) {
		fflush(NULL);
		_exit(status);
	}
}

int
shim_env_init(const struct shim_env_options *options)
{
	struct spdk_env_opts opts;
	struct spdk_pci_addr *allowed = NULL;
	cpu_set_t cores;
	char core[32];
	bool has_cores;
	int here, rc;

	if (g_env_done) {
		return -EALREADY;
	}
	/* It wants one core of those that we may run on, and binds the thread to it. */
	here = sched_getcpu();
	if (here < 0) {
		return -errno;
	}
	has_cores = pthread_getaffinity_np(pthread_self(), sizeof(cores), &cores) == 0;
	if (options->pci_allowed_count > 0) {
		allowed = calloc(options->pci_allowed_count, sizeof(*allowed));
		if (allowed == NULL) {
			return -ENOMEM;
		}
	}
	for (size_t i = 0; i < options->pci_allowed_count; i++) {
		if (spdk_pci_addr_parse(&allowed[i], options->pci_allowed[i]) != 0) {
			free(allowed);
			return -EINVAL;
		}
	}
#if SPDK_VERSION >= SPDK_VERSION_NUM(24, 9, 0)
	opts.opts_size = sizeof(opts);
#endif
	spdk_env_opts_init(&opts);
	/* By its number among ours, as the environment knows fewer cores than a machine may have. */
	snprintf(core, sizeof(core), "0@%d", here);
	opts.name = options->name;
	opts.core_mask = NULL;
	opts.lcore_map = core;
	if (options->memory_mib > INT_MAX) {
		return -EINVAL;
	}
	if (options->memory_mib > 0) {
		opts.mem_size = (int)options->memory_mib;
	}
	opts.no_huge = options->no_huge;
	opts.no_pci = options->no_pci;
	opts.hugedir = options->huge_folder;
	opts.unlink_hugepage = !options->no_huge;
	opts.pci_allowed = allowed;
	opts.num_pci_addr = options->pci_allowed_count;
	rc = spdk_env_init(&opts);
	/* The environment has made its own of what it was given. */
	free(allowed);
	if (rc == 0) {
		g_env_done = true;
		g_env_in_use = on_exit(leave, NULL) == 0;
	}
	/* One thread is not bound to a core by its own will: others may want that core for their own. */
	if (has_cores) {
		pthread_setaffinity_np(pthread_self(), sizeof(cores), &cores);
	}
	return rc;
}

void
shim_env_fini(void)
{
	spdk_env_fini();
	g_env_in_use = false;
}

uint64_t
shim_pci_bound(const char *address)
{
	static const char *const drivers[] = { "vfio-pci", "uio_pci_generic", "igb_uio" };
	char folder[64], link[80], target[PATH_MAX];
	const char *driver;
	struct stat status;
	ssize_t length;
	int bytes = snprintf(folder, sizeof(folder), "/sys/bus/pci/devices/%s", address);

	if (bytes < 0 || (size_t)bytes >= sizeof(folder)) {
		return 0;
	}
	snprintf(link, sizeof(link), "%s/driver", folder);
	length = readlink(link, target, sizeof(target) - 1);
	if (length < 0) {
		return 0;
	}
	target[length] = '\0';
	driver = strrchr(target, '/');
	driver = driver == NULL ? target : driver + 1;
	for (size_t i = 0; i < SPDK_COUNTOF(drivers); i++) {
		if (strcmp(driver, drivers[i]) == 0) {
			return stat(folder, &status) == 0 ? status.st_ino : 0;
		}
	}
	return 0;
}

void *
shim_dma_alloc(size_t bytes, size_t align)
{
	return spdk_zmalloc(bytes, align, NULL, SPDK_ENV_NUMA_ID_ANY, SPDK_MALLOC_DMA);
}

void
shim_dma_free(void *memory)
{
	spdk_free(memory);
}

/* --- Threads ------------------------------------------------------------------------------------- */

static struct spdk_thread *
to_thread(const shim_thread *thread)
{
	return (struct spdk_thread *)(uintptr_t)thread;
}

int
shim_threads_init(void)
{
	/* Threads are polled by who creates them; nobody else has to be told. */
	return spdk_thread_lib_init(NULL, 0);
}

void
shim_threads_fini(void)
{
	spdk_thread_lib_fini();
}

shim_thread *
shim_thread_create(const char *name)
{
	return (shim_thread *)spdk_thread_create(name, NULL);
}

void
shim_thread_set(shim_thread *thread)
{
	spdk_set_thread(to_thread(thread));
}

shim_thread *
shim_thread_current(void)
{
	return (shim_thread *)spdk_get_thread();
}

bool
shim_thread_poll(shim_thread *thread, uint32_t messages_max)
{
	return spdk_thread_poll(to_thread(thread), messages_max, 0) > 0;
}

bool
shim_thread_has_active_pollers(const shim_thread *thread)
{
	return spdk_thread_has_active_pollers(to_thread(thread)) != 0;
}

int64_t
shim_thread_next_poll_us(const shim_thread *thread)
{
	uint64_t next = spdk_thread_next_poller_expiration(to_thread(thread));
	uint64_t now = spdk_get_ticks();
	uint64_t hz = spdk_get_ticks_hz();

	if (next == 0) {
		return -1;
	}
	if (next <= now) {
		return 0;
	}
	/* Rounded up: who waits this long finds it due. */
	return (int64_t)((next - now) / hz * 1000000 + ((next - now) % hz * 1000000 + hz - 1) / hz);
}

int
shim_thread_send(const shim_thread *thread, shim_message_fn message, void *context)
{
	return spdk_thread_send_msg(to_thread(thread), message, context);
}

int
shim_thread_exit(shim_thread *thread)
{
	return spdk_thread_exit(to_thread(thread));
}

bool
shim_thread_is_exited(const shim_thread *thread)
{
	return spdk_thread_is_exited(to_thread(thread));
}

void
shim_thread_destroy(shim_thread *thread)
{
	spdk_thread_destroy(to_thread(thread));
}

struct shim_poller {
	struct spdk_poller *poller;
	shim_poller_fn poll;
	void *context;
};

static int
run_poller(void *arg)
{
	struct shim_poller *poller = arg;

	return poller->poll(poller->context) ? SPDK_POLLER_BUSY : SPDK_POLLER_IDLE;
}

shim_poller *
shim_poller_register(shim_poller_fn poll, void *context, uint64_t period_us)
{
	struct shim_poller *poller = calloc(1, sizeof(*poller));

	if (poller == NULL) {
		return NULL;
	}
	poller->poll = poll;
	poller->context = context;
	poller->poller = spdk_poller_register_named(run_poller, poller, period_us, "bowline");
	if (poller->poller == NULL) {
		free(poller);
		return NULL;
	}
	return poller;
}

void
shim_poller_unregister(shim_poller *poller)
{
	spdk_poller_unregister(&poller->poller);
	free(poller);
}

/* --- Subsystems ------------------------------------------------------------------------------------ */

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

/* Before 25.09 it does so always. */
static bool
drives_are_flushed(void)
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

/* --- Block devices ---------------------------------------------------------------------------------- */

/* A claim belongs to a module. */
static int
module_init(void)
{
	return 0;
}

static struct spdk_bdev_module g_module = {
	.name = "bowline",
	.module_init = module_init,
};

SPDK_BDEV_MODULE_REGISTER(bowline, &g_module)

struct shim_bdev_desc {
	struct spdk_bdev_desc *desc;
	shim_bdev_event_fn event;
	void *context;
};

/* Whether what a flush answers is true. A device of another kind may have a drive behind it. */
static bool
can_flush(struct spdk_bdev *bdev)
{
	const char *module = spdk_bdev_get_module_name(bdev);

	if (!spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_FLUSH)) {
		return false;
	}
	if (drives_are_flushed() || strcmp(module, "malloc") == 0 || strcmp(module, "aio") == 0) {
		return true;
	}
	/* A drive without a cache has nothing to flush. */
	return strcmp(module, "nvme") == 0 && !spdk_bdev_has_write_cache(bdev);
}

static uint32_t
operations_of(struct spdk_bdev *bdev)
{
	static const struct {
		enum spdk_bdev_io_type type;
		uint32_t bit;
	} known[] = {
		{ SPDK_BDEV_IO_TYPE_READ, SHIM_BDEV_READ },
		{ SPDK_BDEV_IO_TYPE_WRITE, SHIM_BDEV_WRITE },
		{ SPDK_BDEV_IO_TYPE_FLUSH, SHIM_BDEV_FLUSH },
		{ SPDK_BDEV_IO_TYPE_UNMAP, SHIM_BDEV_UNMAP },
		{ SPDK_BDEV_IO_TYPE_WRITE_ZEROES, SHIM_BDEV_WRITE_ZEROES },
		{ SPDK_BDEV_IO_TYPE_COMPARE, SHIM_BDEV_COMPARE },
		{ SPDK_BDEV_IO_TYPE_COMPARE_AND_WRITE, SHIM_BDEV_COMPARE_AND_WRITE },
		{ SPDK_BDEV_IO_TYPE_RESET, SHIM_BDEV_RESET },
	};
	uint32_t operations = 0;

	for (size_t i = 0; i < SPDK_COUNTOF(known); i++) {
		if (spdk_bdev_io_type_supported(bdev, known[i].type)) {
			operations |= known[i].bit;
		}
	}
	if (!can_flush(bdev)) {
		operations &= ~(uint32_t)SHIM_BDEV_FLUSH;
	}
	/* SPDK does these itself where the device does not. */
	if ((operations & SHIM_BDEV_READ) != 0) {
		operations |= SHIM_BDEV_COMPARE;
		if ((operations & SHIM_BDEV_WRITE) != 0) {
			operations |= SHIM_BDEV_COMPARE_AND_WRITE;
		}
	}
	return operations;
}

static void
describe(struct spdk_bdev *bdev, struct shim_bdev_info *info)
{
	const struct spdk_uuid *uuid = spdk_bdev_get_uuid(bdev);

	memset(info, 0, sizeof(*info));
	snprintf(info->name, sizeof(info->name), "%s", spdk_bdev_get_name(bdev));
	snprintf(info->product, sizeof(info->product), "%s", spdk_bdev_get_product_name(bdev));
	snprintf(info->module, sizeof(info->module), "%s", spdk_bdev_get_module_name(bdev));
	_Static_assert(sizeof(info->uuid) == sizeof(*uuid), "16 bytes");
	if (uuid != NULL) {
		memcpy(info->uuid, uuid, sizeof(info->uuid));
	}
	info->block_bytes = spdk_bdev_get_data_block_size(bdev);
	info->blocks = spdk_bdev_get_num_blocks(bdev);
	info->metadata_bytes = spdk_bdev_get_md_size(bdev);
	info->physical_block_bytes = spdk_bdev_get_physical_block_size(bdev);
	info->write_unit_blocks = spdk_bdev_get_write_unit_size(bdev);
	info->compare_and_write_blocks = spdk_bdev_get_acwu(bdev);
	info->optimal_boundary_blocks = spdk_bdev_get_optimal_io_boundary(bdev);
	info->buffer_align = (uint32_t)spdk_bdev_get_buf_align(bdev);
	info->write_cache = spdk_bdev_has_write_cache(bdev);
	info->operations = operations_of(bdev);
}

struct each {
	shim_bdev_each_fn each;
	void *context;
};

static int
tell_bdev(void *context, struct spdk_bdev *bdev)
{
	struct each *each = context;
	struct shim_bdev_info info;

	describe(bdev, &info);
	each->each(each->context, &info);
	return 0;
}

void
shim_bdev_for_each(shim_bdev_each_fn each, void *context)
{
	struct each all = { each, context };

	spdk_for_each_bdev(&all, tell_bdev);
}

/* What a drive says of itself is filled up with spaces, and may end with a NUL. */
static void
copy_text(char *to, const uint8_t *from, size_t bytes)
{
	memcpy(to, from, bytes);
	to[bytes] = '\0';
	for (size_t length = strlen(to); length > 0 && to[length - 1] == ' '; length--) {
		to[length - 1] = '\0';
	}
}

static void
ignore_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *context)
{
	(void)type;
	(void)bdev;
	(void)context;
}

static int
identify(struct spdk_bdev_desc *desc, struct shim_nvme_identity *identity)
{
	const struct spdk_nvme_ctrlr_data *drive;
	const struct spdk_nvme_ns_data *data;
	const struct spdk_uuid *uuid;
	struct spdk_nvme_ns *ns;

	if (strcmp(spdk_bdev_get_module_name(spdk_bdev_desc_get_bdev(desc)), "nvme") != 0) {
		return -ENOTSUP;
	}
	/* With this module it is the namespace; none when its drive is going. */
	ns = spdk_bdev_get_module_ctx(desc);
	if (ns == NULL) {
		return -ENODEV;
	}
	memset(identity, 0, sizeof(*identity));
	drive = spdk_nvme_ctrlr_get_data(spdk_nvme_ns_get_ctrlr(ns));
	_Static_assert(sizeof(identity->serial) == sizeof(drive->sn) + 1, "and a NUL");
	copy_text(identity->serial, (const uint8_t *)drive->sn, sizeof(drive->sn));
	_Static_assert(sizeof(identity->model) == sizeof(drive->mn) + 1, "and a NUL");
	copy_text(identity->model, (const uint8_t *)drive->mn, sizeof(drive->mn));
	identity->nsid = spdk_nvme_ns_get_id(ns);
	data = spdk_nvme_ns_get_data(ns);
	_Static_assert(sizeof(identity->nguid) == sizeof(data->nguid), "16 bytes");
	memcpy(identity->nguid, data->nguid, sizeof(identity->nguid));
	_Static_assert(sizeof(identity->eui64) == sizeof(data->eui64), "8 bytes");
	memcpy(identity->eui64, &data->eui64, sizeof(identity->eui64));
	uuid = spdk_nvme_ns_get_uuid(ns);
	if (uuid != NULL) {
		memcpy(identity->uuid, uuid, sizeof(identity->uuid));
	}
	return 0;
}

int
shim_bdev_nvme_identity(const char *name, struct shim_nvme_identity *identity)
{
	struct spdk_bdev_desc *desc;
	int rc = spdk_bdev_open_ext(name, false, ignore_event, NULL, &desc);

	if (rc == 0) {
		rc = identify(desc, identity);
		spdk_bdev_close(desc);
	}
	return rc;
}

static void
bdev_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *context)
{
	struct shim_bdev_desc *desc = context;

	(void)bdev;
	switch (type) {
	case SPDK_BDEV_EVENT_REMOVE:
		desc->event(desc->context, SHIM_BDEV_REMOVED);
		break;
	case SPDK_BDEV_EVENT_RESIZE:
		desc->event(desc->context, SHIM_BDEV_RESIZED);
		break;
	default:
		break;
	}
}

int
shim_bdev_open(const char *name, bool write, shim_bdev_event_fn event, void *context,
	       shim_bdev_desc **out)
{
	struct shim_bdev_desc *desc = calloc(1, sizeof(*desc));
	int rc;

	if (desc == NULL) {
		return -ENOMEM;
	}
	desc->event = event;
	desc->context = context;
	rc = spdk_bdev_open_ext(name, write, bdev_event, desc, &desc->desc);
	if (rc == 0 && write) {
		rc = spdk_bdev_module_claim_bdev_desc(desc->desc,
						      SPDK_BDEV_CLAIM_READ_MANY_WRITE_ONE, NULL,
						      &g_module);
		if (rc != 0) {
			spdk_bdev_close(desc->desc);
		}
	}
	if (rc != 0) {
		free(desc);
		return rc;
	}
	*out = desc;
	return 0;
}

void
shim_bdev_close(shim_bdev_desc *desc)
{
	spdk_bdev_close(desc->desc);
	free(desc);
}

void
shim_bdev_info(const shim_bdev_desc *desc, struct shim_bdev_info *info)
{
	describe(spdk_bdev_desc_get_bdev(desc->desc), info);
}

static struct spdk_io_channel *
to_channel(shim_channel *channel)
{
	return (struct spdk_io_channel *)channel;
}

shim_channel *
shim_bdev_channel(shim_bdev_desc *desc)
{
	return (shim_channel *)spdk_bdev_get_io_channel(desc->desc);
}

void
shim_channel_put(shim_channel *channel)
{
	spdk_put_io_channel(to_channel(channel));
}

static uint16_t
status_of(int type, int code)
{
	return (uint16_t)((type & 0x7) << 8 | (code & 0xff));
}

static void
request_done(struct spdk_bdev_io *io, bool success, void *context)
{
	struct shim_request *request = context;
	uint16_t status = 0;

	if (!success) {
		uint32_t result;
		int type, code;

		spdk_bdev_io_get_nvme_status(io, &result, &type, &code);
		status = status_of(type, code);
		if (status == 0) {
			status = status_of(SPDK_NVME_SCT_GENERIC, SPDK_NVME_SC_INTERNAL_DEVICE_ERROR);
		}
	}
	spdk_bdev_free_io(io);
	request->done(request->context, status);
}

/*
 * Of a compare, alone or before a write: the first that failed counts. Where SPDK compares itself, old
 * versions tell a difference only this way.
 */
static void
compare_done(struct spdk_bdev_io *io, bool success, void *context)
{
	struct shim_request *request = context;
	uint16_t status = 0;

	if (!success) {
		uint32_t result;
		int type, code, write_type, write_code;

		spdk_bdev_io_get_nvme_fused_status(io, &result, &type, &code, &write_type, &write_code);
		status = status_of(type, code);
		if (status == 0) {
			status = status_of(write_type, write_code);
		}
		if (status == 0) {
			status = status_of(SPDK_NVME_SCT_GENERIC, SPDK_NVME_SC_INTERNAL_DEVICE_ERROR);
		}
	}
	spdk_bdev_free_io(io);
	request->done(request->context, status);
}

/* SPDK trusts its caller with this: a device would read or write beyond what it was given. */
static bool
covers(const shim_bdev_desc *desc, const struct shim_slice *slices, uint32_t count, uint64_t blocks)
{
	uint64_t block_bytes = spdk_bdev_get_data_block_size(spdk_bdev_desc_get_bdev(desc->desc));
	uint64_t wanted, bytes = 0;

	if (blocks == 0 || __builtin_mul_overflow(blocks, block_bytes, &wanted)) {
		return false;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (__builtin_add_overflow(bytes, slices[i].bytes, &bytes)) {
			return false;
		}
	}
	return bytes == wanted;
}

/* SPDK does not change what it is given, but does not say so. */
static struct iovec *
to_iov(const struct shim_slice *slices)
{
	return (struct iovec *)(uintptr_t)slices;
}

int
shim_bdev_read(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
	       uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, slices, slice_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_readv_blocks(desc->desc, to_channel(channel), to_iov(slices),
				      (int)slice_count, block, blocks, request_done, request);
}

int
shim_bdev_write(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, slices, slice_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_writev_blocks(desc->desc, to_channel(channel), to_iov(slices),
				       (int)slice_count, block, blocks, request_done, request);
}

int
shim_bdev_compare(shim_bdev_desc *desc, shim_channel *channel, const struct shim_slice *slices,
		  uint32_t slice_count, uint64_t block, uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, slices, slice_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_comparev_blocks(desc->desc, to_channel(channel), to_iov(slices),
					 (int)slice_count, block, blocks, compare_done, request);
}

int
shim_bdev_compare_and_write(shim_bdev_desc *desc, shim_channel *channel,
			    const struct shim_slice *compare, uint32_t compare_count,
			    const struct shim_slice *write, uint32_t write_count, uint64_t block,
			    uint64_t blocks, struct shim_request *request)
{
	if (!covers(desc, compare, compare_count, blocks) ||
	    !covers(desc, write, write_count, blocks)) {
		return -EINVAL;
	}
	return spdk_bdev_comparev_and_writev_blocks(desc->desc, to_channel(channel),
			to_iov(compare), (int)compare_count, to_iov(write), (int)write_count, block,
			blocks, compare_done, request);
}

int
shim_bdev_flush(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	return spdk_bdev_flush_blocks(desc->desc, to_channel(channel), block, blocks, request_done,
				      request);
}

int
shim_bdev_unmap(shim_bdev_desc *desc, shim_channel *channel, uint64_t block, uint64_t blocks,
		struct shim_request *request)
{
	/* A device of NVMe counts from 0: none would be as many as there can be. */
	if (blocks == 0) {
		return -EINVAL;
	}
	return spdk_bdev_unmap_blocks(desc->desc, to_channel(channel), block, blocks, request_done,
				      request);
}

int
shim_bdev_write_zeroes(shim_bdev_desc *desc, shim_channel *channel, uint64_t block,
		       uint64_t blocks, struct shim_request *request)
{
	/* A device of NVMe counts from 0: none would be as many as there can be. */
	if (blocks == 0) {
		return -EINVAL;
	}
	return spdk_bdev_write_zeroes_blocks(desc->desc, to_channel(channel), block, blocks,
					     request_done, request);
}

int
shim_bdev_reset(shim_bdev_desc *desc, shim_channel *channel, struct shim_request *request)
{
	return spdk_bdev_reset(desc->desc, to_channel(channel), request_done, request);
}
