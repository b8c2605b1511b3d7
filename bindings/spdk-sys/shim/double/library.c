/* The double's log, environment and threads. */
#include "double.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- The library ------------------------------------------------------------------------------ */

const char *
shim_version(void)
{
	return "SPDK double";
}

bool
shim_is_double(void)
{
	return true;
}

static shim_log_fn g_log;
static enum shim_log_level g_log_level = SHIM_LOG_NOTICE;

void
shim_log_open(shim_log_fn log, enum shim_log_level level)
{
	g_log = log;
	g_log_level = level;
}

void
double_log(enum shim_log_level level, const char *format, ...)
{
	char message[512];
	va_list args;

	if (g_log == NULL || level > g_log_level) {
		return;
	}
	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	g_log(level, __FILE__, __LINE__, NULL, message);
}

/* --- The environment ---------------------------------------------------------------------------- */

static bool g_env_done;
/* What was set aside for DMA, as far as one piece can be told to be more; 0: nothing was said. */
static size_t g_dma_bytes;

int
shim_env_init(const struct shim_env_options *options)
{
	if (g_env_done) {
		return -EALREADY;
	}
	if (options->name == NULL) {
		return -EINVAL;
	}
	g_env_done = true;
	g_dma_bytes = (size_t)options->memory_mib << 20;
	return 0;
}

void
shim_env_fini(void)
{
}

void *
shim_dma_alloc(size_t bytes, size_t align)
{
	void *memory;

	if (g_dma_bytes > 0 && bytes > g_dma_bytes) {
		return NULL;
	}
	if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, bytes) != 0) {
		return NULL;
	}
	memset(memory, 0, bytes);
	return memory;
}

void
shim_dma_free(void *memory)
{
	free(memory);
}

/* --- Threads ------------------------------------------------------------------------------------- */

struct message {
	struct message *next;
	shim_message_fn run;
	void *context;
};

struct shim_poller {
	struct shim_poller *next;
	struct shim_thread *thread;
	shim_poller_fn poll;
	void *context;
	uint64_t period_us;
	uint64_t due_us;
	bool gone;
};

struct shim_thread {
	pthread_mutex_t lock;
	/* Guarded by the lock. */
	struct message *first;
	struct message **last;
	bool exited;
	/* The polling thread's own. */
	struct shim_poller *pollers;
	struct double_timer *timers;
	int channels;
	bool exiting;
	uint64_t exit_until_us;
};

/* Messages of one poll when nothing is said. */
#define MESSAGES_DEFAULT 8
/* After this a thread has exited, whatever is left on it. */
#define EXIT_US 5000000

static struct shim_thread *g_app_thread;
static __thread struct shim_thread *t_current;

uint64_t
double_now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

int
shim_threads_init(void)
{
	return g_env_done ? 0 : -EINVAL;
}

void
shim_threads_fini(void)
{
	g_app_thread = NULL;
}

shim_thread *
shim_thread_create(const char *name)
{
	struct shim_thread *thread = calloc(1, sizeof(*thread));

	(void)name;
	if (thread == NULL) {
		return NULL;
	}
	pthread_mutex_init(&thread->lock, NULL);
	thread->last = &thread->first;
	if (g_app_thread == NULL) {
		g_app_thread = thread;
	}
	return thread;
}

void
shim_thread_set(shim_thread *thread)
{
	t_current = thread;
}

shim_thread *
shim_thread_current(void)
{
	return t_current;
}

static struct message *
take_message(struct shim_thread *thread)
{
	struct message *message;

	pthread_mutex_lock(&thread->lock);
	message = thread->first;
	if (message != NULL) {
		thread->first = message->next;
		if (thread->first == NULL) {
			thread->last = &thread->first;
		}
	}
	pthread_mutex_unlock(&thread->lock);
	return message;
}

static bool
run_messages(struct shim_thread *thread, uint32_t messages_max)
{
	uint32_t left = messages_max == 0 ? MESSAGES_DEFAULT : messages_max;
	bool busy = false;

	while (left-- > 0) {
		struct message *message = take_message(thread);

		if (message == NULL) {
			break;
		}
		message->run(message->context);
		free(message);
		busy = true;
	}
	return busy;
}

static void
drop_gone_pollers(struct shim_thread *thread)
{
	struct shim_poller **at = &thread->pollers;

	while (*at != NULL) {
		struct shim_poller *poller = *at;

		if (poller->gone) {
			*at = poller->next;
			free(poller);
		} else {
			at = &poller->next;
		}
	}
}

static bool
run_pollers(struct shim_thread *thread)
{
	bool busy = false;

	for (struct shim_poller *poller = thread->pollers; poller != NULL; poller = poller->next) {
		if (poller->gone) {
			continue;
		}
		if (poller->period_us > 0) {
			uint64_t now = double_now_us();

			if (now < poller->due_us) {
				continue;
			}
			poller->due_us = now + poller->period_us;
		}
		busy |= poller->poll(poller->context);
	}
	drop_gone_pollers(thread);
	return busy;
}

void
double_timer_add(struct double_timer *timer)
{
	struct double_timer **at = &t_current->timers;

	/* Behind those that are due at the same time. */
	while (*at != NULL && (*at)->due_us <= timer->due_us) {
		at = &(*at)->next;
	}
	timer->next = *at;
	*at = timer;
}

static bool
run_timers(struct shim_thread *thread)
{
	bool busy = false;

	while (thread->timers != NULL && thread->timers->due_us <= double_now_us()) {
		struct double_timer *timer = thread->timers;

		thread->timers = timer->next;
		timer->run(timer->context);
		busy = true;
	}
	return busy;
}

void
double_thread_count_channels(shim_thread *thread, int change)
{
	thread->channels += change;
}

static void
try_to_exit(struct shim_thread *thread)
{
	bool late = double_now_us() >= thread->exit_until_us;
	bool idle = thread->pollers == NULL && thread->timers == NULL && thread->channels == 0;

	pthread_mutex_lock(&thread->lock);
	if (late && !thread->exited) {
		double_log(SHIM_LOG_ERROR, "a thread exits with something left on it");
	}
	thread->exited |= late || (idle && thread->first == NULL);
	pthread_mutex_unlock(&thread->lock);
}

bool
shim_thread_poll(shim_thread *thread, uint32_t messages_max)
{
	struct shim_thread *outer = t_current;
	bool busy;

	t_current = thread;
	busy = run_messages(thread, messages_max);
	busy |= run_timers(thread);
	busy |= run_pollers(thread);
	if (thread->exiting) {
		try_to_exit(thread);
	}
	t_current = outer;
	return busy;
}

bool
shim_thread_has_active_pollers(const shim_thread *thread)
{
	for (const struct shim_poller *poller = thread->pollers; poller != NULL; poller = poller->next) {
		if (!poller->gone && poller->period_us == 0) {
			return true;
		}
	}
	return thread->timers != NULL;
}

int64_t
shim_thread_next_poll_us(const shim_thread *thread)
{
	uint64_t now = double_now_us();
	int64_t next = -1;

	for (const struct shim_poller *poller = thread->pollers; poller != NULL; poller = poller->next) {
		int64_t left;

		if (poller->gone || poller->period_us == 0) {
			continue;
		}
		left = poller->due_us > now ? (int64_t)(poller->due_us - now) : 0;
		if (next < 0 || left < next) {
			next = left;
		}
	}
	return next;
}

int
shim_thread_send(const shim_thread *to, shim_message_fn run, void *context)
{
	struct shim_thread *thread = (struct shim_thread *)(uintptr_t)to;
	struct message *message = malloc(sizeof(*message));
	bool exited;

	if (message == NULL) {
		return -ENOMEM;
	}
	message->next = NULL;
	message->run = run;
	message->context = context;
	pthread_mutex_lock(&thread->lock);
	exited = thread->exited;
	if (!exited) {
		*thread->last = message;
		thread->last = &message->next;
	}
	pthread_mutex_unlock(&thread->lock);
	if (exited) {
		free(message);
		return -EIO;
	}
	return 0;
}

int
shim_thread_exit(shim_thread *thread)
{
	thread->exiting = true;
	thread->exit_until_us = double_now_us() + EXIT_US;
	return 0;
}

bool
shim_thread_is_exited(const shim_thread *thread)
{
	return thread->exited;
}

void
shim_thread_destroy(shim_thread *thread)
{
	if (t_current == thread) {
		t_current = NULL;
	}
	while (thread->pollers != NULL) {
		struct shim_poller *poller = thread->pollers;

		thread->pollers = poller->next;
		free(poller);
	}
	while (thread->first != NULL) {
		free(take_message(thread));
	}
	pthread_mutex_destroy(&thread->lock);
	free(thread);
}

shim_poller *
shim_poller_register(shim_poller_fn poll, void *context, uint64_t period_us)
{
	struct shim_poller *poller;

	if (t_current == NULL) {
		return NULL;
	}
	poller = calloc(1, sizeof(*poller));
	if (poller == NULL) {
		return NULL;
	}
	poller->thread = t_current;
	poller->poll = poll;
	poller->context = context;
	poller->period_us = period_us;
	poller->due_us = double_now_us() + period_us;
	poller->next = t_current->pollers;
	t_current->pollers = poller;
	return poller;
}

void
shim_poller_unregister(shim_poller *poller)
{
	/* It may be the one that runs. */
	poller->gone = true;
}

/* --- Ends of what was begun ------------------------------------------------------------------------ */

bool g_double_tells_at_once;

struct notice {
	shim_done_fn done;
	void *context;
	int result;
};

static void
tell(void *context)
{
	struct notice notice = *(struct notice *)context;

	free(context);
	notice.done(notice.context, notice.result);
}

void
double_tell(shim_done_fn done, void *context, int result)
{
	struct notice *notice;

	if (g_double_tells_at_once && t_current == g_app_thread) {
		done(context, result);
		return;
	}
	notice = malloc(sizeof(*notice));
	if (notice == NULL) {
		abort();
	}
	notice->done = done;
	notice->context = context;
	notice->result = result;
	if (shim_thread_send(g_app_thread, tell, notice) != 0) {
		/* It has ended, and so has everybody who might have waited. */
		free(notice);
	}
}
