// Looks after answers: one that is overdue is cancelled.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include <trtvlm.hpp>

// The library keeps deadlines by itself, up to the pass that is running. The watchdog is for what it
// cannot know: a machine that stands still in the middle of a pass. It cancels, counts and goes on.
class Watchdog {
public:
  Watchdog(const trtvlm::Session &session, std::chrono::milliseconds patience);
  ~Watchdog();
  Watchdog(const Watchdog &) = delete;
  Watchdog &operator=(const Watchdog &) = delete;

  void begin();
  void end();
  std::uint64_t barked() const { return barked_.load(); }

private:
  void run(std::chrono::milliseconds patience);

  const trtvlm::Session &session_;
  std::atomic<std::int64_t> since_ns_{0}; // 0 where nothing is being answered
  std::atomic<std::uint64_t> barked_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};
