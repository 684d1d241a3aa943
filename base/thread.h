// Threads of ours that take no signals: those of the process are the main thread's.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "base/result.h"

namespace crossbar {

// Starts a thread that runs `body` with every signal blocked but those that a fault of its own raises
// (blocked, they would kill us past the handler that restores the terminal), and that debuggers and top
// call `name` (at most 15 characters). Error: the host has no more threads for us.
Result<std::thread> StartThread(const std::string& name, std::function<void()> body);

}  // namespace crossbar
