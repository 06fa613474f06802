/* The first process of a pod: waits for the end, and reaps what the pod's containers leave to it. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal_number) { _exit(signal_number == SIGINT ? 1 : 0); }

static void reap(int signal_number)
{
	(void)signal_number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction ends = { .sa_handler = end };
	struct sigaction reaps = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP };

	if (sigaction(SIGINT, &ends, NULL) || sigaction(SIGTERM, &ends, NULL) ||
	    sigaction(SIGCHLD, &reaps, NULL))
		return 2;
	for (;;)
		pause();
}
