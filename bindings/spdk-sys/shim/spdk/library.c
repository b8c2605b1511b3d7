/* The library's log, environment and threads. */
#define _GNU_SOURCE
#include "spdk.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <spdk/env.h>
#include <spdk/log.h>
#include <spdk/thread.h>

/* As it was called before 24.09. */
#ifndef SPDK_ENV_NUMA_ID_ANY
#define SPDK_ENV_NUMA_ID_ANY SPDK_ENV_SOCKET_ID_ANY
#endif

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
	char name[32], folder[64], link[80], target[PATH_MAX];
	struct spdk_pci_addr parsed;
	const char *driver;
	struct stat status;
	ssize_t length;

	/* The kernel writes it in one way only. */
	if (spdk_pci_addr_parse(&parsed, address) != 0 ||
	    spdk_pci_addr_fmt(name, sizeof(name), &parsed) != 0) {
		return 0;
	}
	snprintf(folder, sizeof(folder), "/sys/bus/pci/devices/%s", name);
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
