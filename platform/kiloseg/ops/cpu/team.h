// Runs threads that work on one call. With OpenMP compiled in, they are OpenMP's threads, which are torch's own (see compiler.py);
// otherwise they are new threads that end with the call. OpenMP's threads already exist and have found their cores: beside 30
// other processes, a loss over 19 classes took 9 ms with them and 16 ms with new ones.

#ifndef KILOSEG_TEAM_H
#define KILOSEG_TEAM_H

#ifdef _OPENMP
#include <omp.h>
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define MAX_THREADS 256

struct team {
    int threads;
    void *work;
    void (*run)(struct team *, int thread);
    pthread_mutex_t gate;
    atomic_int arrived, generation;
    atomic_llong next;
};

// Returns the next task of this phase, counted from 0; threads take tasks as they become free.
static inline int64_t next_task(struct team *team) {
    return atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
}

// Ends a phase: it waits for all threads, then counts tasks from 0 again.
static inline void meet(struct team *team) {
    int generation = atomic_load_explicit(&team->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->threads - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        atomic_store_explicit(&team->generation, generation + 1, memory_order_release);
        return;
    }
    for (int tries = 0; atomic_load_explicit(&team->generation, memory_order_acquire) == generation; ++tries) {
        if (tries < 4000) {  // about 50 us; after that the others may have no core
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            sched_yield();
        }
    }
}

#ifdef _OPENMP

static void start(struct team *team, int64_t threads) {
#pragma omp parallel num_threads((int)threads)
    {
#pragma omp single
        team->threads = omp_get_num_threads();
        team->run(team, omp_get_thread_num());
    }
}

#else

struct member {
    struct team *team;
    int thread;
};

static void *begin(void *member) {
    struct member *mine = member;
    pthread_mutex_lock(&mine->team->gate);
    pthread_mutex_unlock(&mine->team->gate);
    mine->team->run(mine->team, mine->thread);
    return 0;
}

static void start(struct team *team, int64_t threads) {
    struct member members[MAX_THREADS];
    pthread_t handles[MAX_THREADS];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 2 << 20);
    pthread_mutex_lock(&team->gate);  // no thread starts before the number to wait for is known
    for (; team->threads < threads; ++team->threads) {
        members[team->threads] = (struct member){team, team->threads};
        if (pthread_create(&handles[team->threads], &attributes, begin, &members[team->threads]) != 0) break;
    }
    pthread_mutex_unlock(&team->gate);
    team->run(team, 0);
    for (int i = 1; i < team->threads; ++i) pthread_join(handles[i], 0);
    pthread_attr_destroy(&attributes);
}

#endif

// Runs `run` on this many threads, including the calling one, or on fewer if no more can be created.
static void run_team(void (*run)(struct team *, int), void *work, int64_t threads) {
    struct team team = {.threads = 1, .work = work, .run = run, .gate = PTHREAD_MUTEX_INITIALIZER};
    threads = threads < MAX_THREADS ? threads : MAX_THREADS;
    if (threads < 2) run(&team, 0);
    else start(&team, threads);
}

#endif
