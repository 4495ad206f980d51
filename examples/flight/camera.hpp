// A camera: image files of a folder at a fixed rate.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// A frame as the camera gives it. The bytes belong to the camera and live as long as it does.
struct Shot {
  const std::vector<unsigned char> *file = nullptr;
  std::uint64_t number = 0;       // from 1
  std::uint64_t timestamp_ns = 0; // steady clock
};

// Takes pictures in a thread of its own. There is one slot: a new picture takes the place of one that nobody has
// looked at, which is then dropped.
class Camera {
public:
  Camera() = default;
  ~Camera();
  Camera(const Camera &) = delete;
  Camera &operator=(const Camera &) = delete;

  // Reads all files of the folder, so that nothing is read in flight; false if there are none.
  bool load(const std::string &folder);
  void start(double rate_hz);
  // Waits for a picture that was not taken yet; false if there is none within the time.
  bool take(Shot &shot, std::chrono::milliseconds patience);
  std::uint64_t dropped() const { return dropped_.load(); }

private:
  void run(std::chrono::nanoseconds period);

  std::vector<std::vector<unsigned char>> files_;
  std::mutex mutex_;
  std::condition_variable taken_;
  Shot slot_;
  bool is_full_ = false;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> dropped_{0};
  std::thread thread_;
};
